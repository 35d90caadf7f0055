"""`smoe plan --rate`: how many servers a load needs, by the engine's scheduler in virtual time."""

import json
import random
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import typer

from engine.capacity.memory_plan import MemoryPlan
from engine.capacity.new_scheduler import CALIBRATION_TOKENS, cpu_token_budget, make_scheduler
from engine.capacity.sizing import EngineLimits
from engine.config import EngineConfig
from engine.errors import RequestRejectedError
from engine.planning.replicas import ALONE, PERCENT, Answer, Limits, Outcome, fewest_replicas
from engine.planning.step_time_model import MeasuredStep, MeasurementError, StepTimeModel, read_steps
from engine.planning.virtual_engine import Arrival, Timeline, VirtualEngine
from server.bench.workload import Range, WorkloadError, poisson_arrivals
from server.cli.errors import report_error
from server.cli.plan import NOTHING_FITS, PlanError, make_report
from server.cli.settings_of_command import load_settings
from server.settings.sources import SettingsError, parse_size_flag

MIN_REQUESTS, MAX_REQUESTS = 400, 10_000  # of one engine in a run: the 99th percentile leaves out at least four
MIN_RUN = 20  # times the limit of the first token: then an engine with 5 % too much load is seen to fall behind
NUM_ALONE = 20
GPU_BUDGET = 2048
MIN_BUDGET = 32
HEADING = (
    f"{'servers':<9}{'tokens a step':>14}{'first token p50':>17}{'p99':>9}{'gap p50':>10}{'p99':>9}{'tokens/s':>10}"
)
GIVE_UP = 4  # times the limit of the first token: the queue only grows


@dataclass(frozen=True)
class Load:
    """The options of --rate, as given."""

    rate: float | None
    steps: Path | None
    prompt_tokens: str
    output_tokens: str
    slo_ttft: float
    slo_gap: float


class CapacityError(Exception):
    """Options that make no sense together, or a file that is no measurement. One line."""


def run(flags: Mapping[str, Any], memory: str | None, load: Load, *, as_json: bool) -> int:
    """Print the answer; return the exit code: 0, 1 if no number of servers is enough, 2 for bad input."""
    try:
        settings = load_settings(flags)
        plan = make_report(settings, None if memory is None else parse_size_flag("--memory", memory)).fitting
        if plan is None or plan.limits is None:
            raise CapacityError("the model does not fit the memory: see smoe plan without --rate")
        answer = capacity(plan, plan.limits, load)
    except (SettingsError, PlanError, CapacityError, WorkloadError) as error:
        return report_error(error)
    typer.echo(json.dumps(_as_fields(answer), indent=2) if as_json else "\n".join(_lines(answer, load)))
    return NOTHING_FITS if answer.best is None else 0


def capacity(plan: MemoryPlan, limits: EngineLimits, load: Load) -> Answer:
    """Return how many engines with this memory plan the load needs. Raises CapacityError and WorkloadError."""
    if load.rate is None or load.steps is None:
        raise CapacityError("--rate and --steps need each other: give both")
    if not load.rate > 0 or not load.slo_ttft > 0 or not load.slo_gap > 0:
        raise CapacityError("--rate, --slo-ttft and --slo-gap should be more than 0")
    model = StepTimeModel(_measured(load.steps), plan.model.window)
    rate, prompts, outputs = load.rate, Range.parse(load.prompt_tokens), Range.parse(load.output_tokens)
    config = _without_cache(plan)

    def simulate(num_replicas: int, budget: int) -> Timeline:
        scheduler = make_scheduler(config, plan.model, replace(limits, max_num_batched_tokens=budget))
        share = rate / num_replicas
        count = min(MAX_REQUESTS, max(MIN_REQUESTS, round(MIN_RUN * load.slo_ttft * share)))
        arrivals = _arrivals(share, prompts, outputs, NUM_ALONE if num_replicas == ALONE else count)
        return VirtualEngine(scheduler, model.step_s).run(arrivals, GIVE_UP * load.slo_ttft)

    try:
        return fewest_replicas(simulate, _budgets(plan, model), Limits(load.slo_ttft, load.slo_gap))
    except RequestRejectedError as error:
        raise CapacityError(f"{error} (--prompt-tokens)") from None


def _measured(path: Path) -> list[MeasuredStep]:
    try:
        return read_steps(json.loads(path.read_bytes()))
    except OSError as error:
        raise CapacityError(f"--steps {path}: {error.strerror}") from None
    except (ValueError, MeasurementError) as error:
        reason = str(error) if isinstance(error, MeasurementError) else "is not JSON"
        raise CapacityError(f"--steps {path}: {reason}") from None


def _without_cache(plan: MemoryPlan) -> EngineConfig:
    """Return the engine's settings without the prefix cache, since the virtual prompts are all alike."""
    return msgspec.structs.replace(plan.config, enable_prefix_caching=False, num_tenants=1)


def _budgets(plan: MemoryPlan, model: StepTimeModel) -> list[int]:
    """Return the token budgets of a step to try: the configured one, or the default and its halves."""
    if plan.config.max_num_batched_tokens is not None:
        return [plan.config.max_num_batched_tokens]
    on_gpu = plan.config.device == "cuda"
    budget = GPU_BUDGET if on_gpu else cpu_token_budget(CALIBRATION_TOKENS, model.rows_s(CALIBRATION_TOKENS))
    budgets = [budget]
    while budgets[-1] >= 2 * MIN_BUDGET:
        budgets.append(budgets[-1] // 2 // MIN_BUDGET * MIN_BUDGET)
    return budgets


def _arrivals(rate: float, prompts: Range, outputs: Range, count: int) -> list[Arrival]:
    """Return a load of Poisson arrivals. The lengths are the same for every rate."""
    lengths, times = random.Random(0), poisson_arrivals(rate, random.Random(1))
    return [Arrival(next(times), prompts.draw(lengths), outputs.draw(lengths)) for _ in range(count)]


def _as_fields(answer: Answer) -> dict[str, Any]:
    return {name: None if outcome is None else asdict(outcome) for name, outcome in _outcomes(answer)}


def _outcomes(answer: Answer) -> list[tuple[str, Outcome | None]]:
    return [("best", answer.best), ("one_less", answer.one_less), ("alone", answer.alone)]


def _lines(answer: Answer, load: Load) -> Iterator[str]:
    limits = f"first token within {load.slo_ttft:g} s and gaps of at most {load.slo_gap:g} s for {PERCENT} %"
    yield f"{load.rate:g} requests/s of {load.prompt_tokens} prompt and {load.output_tokens} output tokens; {limits}"
    yield HEADING
    for outcome in (answer.best, answer.one_less, answer.alone):
        if outcome is not None:
            yield _row(outcome)
    if answer.best is None:
        yield "verdict: no number of servers is enough: a request alone is too slow, or meets others too often"
        return
    servers = "1 server is" if answer.best.num_replicas == 1 else f"{answer.best.num_replicas} servers are"
    yield f"verdict: {servers} enough"
    yield shlex.join(["smoe", "serve", "--max-num-batched-tokens", str(answer.best.max_num_batched_tokens)])


def _row(outcome: Outcome) -> str:
    name = "idle" if outcome.num_replicas == ALONE else str(outcome.num_replicas)
    start = f"{name:<9}{outcome.max_num_batched_tokens:>14}"
    if outcome.is_overloaded:
        return f"{start}{'too late: the queue grows':>30}"
    first = f"{outcome.ttft_p50_s:>15.3f} s{outcome.ttft_p99_s:>7.2f} s"
    speed = "" if outcome.num_replicas == ALONE else f"{outcome.tokens_per_s:.0f}"
    return f"{start}{first}{outcome.gap_p50_s:>8.3f} s{outcome.gap_p99_s:>7.3f} s{speed:>10}"
