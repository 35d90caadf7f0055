"""`smoe plan --rate`: how many servers a load needs, by the engine's scheduler in virtual time."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
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
from engine.planning.fitted_steps import read_fitted
from engine.planning.hardware import HARDWARE, Hardware
from engine.planning.predicted_steps import SHARE_OF_BANDWIDTH, SHARE_OF_PEAK, StepPredictor
from engine.planning.replicas import ALONE, PERCENT, Answer, Limits, Outcome, fewest_replicas
from engine.planning.step_time_model import MeasurementError, StepTimeModel, StepTimes, read_steps
from engine.planning.virtual_engine import Timeline, VirtualEngine
from server.bench.planned_load import DrawnLoad, PlannedLoad, TracedLoad
from server.bench.trace_file import TraceError, read_trace_file
from server.bench.workload import Range, WorkloadError
from server.cli.errors import report_error
from server.cli.plan.memory import (
    NOTHING_FITS,
    PlanError,
    make_report,
    planned_settings,
)
from server.settings.settings import Settings
from server.settings.sources import SettingsError, parse_size_flag

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
    trace: Path | None
    steps: Path | None
    hardware: str | None
    network_gbit: float
    prompt_tokens: str
    output_tokens: str
    slo_ttft: float
    slo_gap: float


class CapacityError(Exception):
    """Options that make no sense together, or a file that is no measurement. One line."""


def run(flags: Mapping[str, Any], memory: str | None, load: Load, *, as_json: bool) -> int:
    """Print the answer; return the exit code: 0, 1 if no number of servers is enough, 2 for bad input."""
    try:
        report = make_report(_settings(flags, load), _memory(memory, load))
        plan = report.fitting
        if plan is None or plan.limits is None:
            raise CapacityError("the model does not fit the memory: see smoe plan without --rate")
        answer = capacity(plan, plan.limits, load)
    except (SettingsError, PlanError, CapacityError, WorkloadError, TraceError) as error:
        return report_error(error)
    lines = _lines(answer, load, plan, report.command)
    typer.echo(json.dumps(_as_fields(answer), indent=2) if as_json else "\n".join(lines))
    return NOTHING_FITS if answer.best is None else 0


def capacity(plan: MemoryPlan, limits: EngineLimits, load: Load) -> Answer:
    """Return how many engines with this memory plan the load needs.

    Raises CapacityError, WorkloadError and TraceError.
    """
    if (load.rate is None and load.trace is None) or (load.steps is None and load.hardware is None):
        raise CapacityError("--rate and --steps need each other, or --trace and --hardware instead: give both")
    rate = 1.0 if load.rate is None else load.rate
    if not all(value > 0 for value in (rate, load.slo_ttft, load.slo_gap, load.network_gbit)):
        raise CapacityError("--rate, --slo-ttft, --slo-gap and --network-gbit should be more than 0")
    times = _step_times(plan, load)
    planned = _planned_load(load)
    config = _without_cache(plan)

    def simulate(num_replicas: int, budget: int) -> Timeline:
        scheduler = make_scheduler(config, plan.model, replace(limits, max_num_batched_tokens=budget))
        return VirtualEngine(scheduler, times.step_s, times.request_s).run(
            planned.share(num_replicas), GIVE_UP * load.slo_ttft
        )

    try:
        return fewest_replicas(simulate, _budgets(plan, times), Limits(load.slo_ttft, load.slo_gap))
    except RequestRejectedError as error:
        raise CapacityError(f"{error} ({'--prompt-tokens' if load.trace is None else '--trace'})") from None


def _planned_load(load: Load) -> PlannedLoad:
    """Return the requests to plan for. Raises WorkloadError and TraceError."""
    if load.trace is not None:
        return TracedLoad(read_trace_file(load.trace), load.rate)
    assert load.rate is not None
    prompts, outputs = Range.parse(load.prompt_tokens), Range.parse(load.output_tokens)
    return DrawnLoad(load.rate, prompts, outputs, load.slo_ttft)


def _hardware(load: Load) -> Hardware | None:
    """Return the hardware that --hardware names, if it is given."""
    if load.hardware is not None and load.hardware not in HARDWARE:
        raise CapacityError(f"--hardware {load.hardware}: should be one of {', '.join(HARDWARE)}")
    return None if load.hardware is None else HARDWARE[load.hardware]


def _settings(flags: Mapping[str, Any], load: Load) -> Settings:
    """Return the settings, for the device that --hardware names. Raises SettingsError and CapacityError."""
    hardware = _hardware(load)
    if hardware is None:
        return planned_settings(flags)
    device, given = "cuda" if hardware.is_gpu else "cpu", flags.get("device", "auto")
    if given not in ("auto", device):
        raise CapacityError(f"--hardware {load.hardware} is --device {device}, not {given}: leave out --device")
    return planned_settings({**flags, "device": device})


def _memory(memory: str | None, load: Load) -> int | None:
    """Return the memory to plan for: --memory, or else that of the GPU that --hardware names."""
    hardware = _hardware(load)
    if memory is None:
        return None if hardware is None else hardware.gpu_memory_bytes
    return parse_size_flag("--memory", memory)


def _step_times(plan: MemoryPlan, load: Load) -> StepTimes:
    """Return the times of steps: measured or, for --hardware, predicted. Raises CapacityError."""
    hardware = _hardware(load)
    if load.steps is None:
        assert hardware is not None
        if hardware.is_gpu and plan.config.tensor_parallel_size > 1:
            raise CapacityError(f"--hardware {load.hardware}: steps of several GPUs are not predicted: no gathers "
                                "between them were measured; drop --tensor-parallel-size")  # fmt: skip
        predictor = StepPredictor(plan, hardware, load.network_gbit * 1e9 / 8)
        return StepTimeModel(predictor.steps(), plan.model.window)
    if hardware is not None:
        raise CapacityError("--steps and --hardware exclude each other: give one")
    if plan.config.nnodes > 1:
        raise CapacityError("--steps are those of one host: with --nnodes give --hardware")
    return _measured(load.steps, plan.model.window)


def _measured(path: Path, window: int | None) -> StepTimes:
    try:
        figures = json.loads(path.read_bytes())
        if isinstance(figures, dict) and figures.get("kind") == "steps":
            return read_fitted(figures, window)
        return StepTimeModel(read_steps(figures), window)
    except OSError as error:
        raise CapacityError(f"--steps {path}: {error.strerror}") from None
    except (ValueError, RecursionError, MeasurementError) as error:
        reason = str(error) if isinstance(error, MeasurementError) else "is not JSON"
        raise CapacityError(f"--steps {path}: {reason}") from None


def _without_cache(plan: MemoryPlan) -> EngineConfig:
    """Return the engine's settings without the prefix cache, since the virtual prompts are all alike."""
    return msgspec.structs.replace(plan.config, enable_prefix_caching=False, num_tenants=1)


def _budgets(plan: MemoryPlan, times: StepTimes) -> list[int]:
    """Return the token budgets of a step to try: the configured one, or the default and its halves."""
    if plan.config.max_num_batched_tokens is not None:
        return [plan.config.max_num_batched_tokens]
    on_gpu = plan.config.device == "cuda"
    budget = GPU_BUDGET if on_gpu else cpu_token_budget(CALIBRATION_TOKENS, times.rows_s(CALIBRATION_TOKENS))
    budgets = [budget]
    while budgets[-1] >= 2 * MIN_BUDGET:
        budgets.append(budgets[-1] // 2 // MIN_BUDGET * MIN_BUDGET)
    return budgets


def _as_fields(answer: Answer) -> dict[str, Any]:
    return {name: None if outcome is None else asdict(outcome) for name, outcome in _outcomes(answer)}


def _outcomes(answer: Answer) -> list[tuple[str, Outcome | None]]:
    return [("best", answer.best), ("one_less", answer.one_less), ("alone", answer.alone)]


def _lines(answer: Answer, load: Load, plan: MemoryPlan, command: Sequence[str]) -> Iterator[str]:
    """Yield the table, the verdict and `command`, which serves the plan, with the best budget of a step."""
    limits = f"first token within {load.slo_ttft:g} s and gaps of at most {load.slo_gap:g} s for {PERCENT} %"
    yield f"{_load_in_words(load)}; {limits}"
    if load.hardware is not None:
        yield from _prediction(load, plan)
    yield HEADING
    for outcome in (answer.best, answer.one_less, answer.alone):
        if outcome is not None:
            yield _row(outcome)
    if answer.best is None:
        yield "verdict: no number of servers is enough: a request alone is too slow, or meets others too often"
        return
    servers = "1 server is" if answer.best.num_replicas == 1 else f"{answer.best.num_replicas} servers are"
    hosts = plan.config.nnodes * answer.best.num_replicas
    yield f"verdict: {servers} enough" + (f", on {hosts} hosts" if plan.config.nnodes > 1 else "")
    budget = ["--max-num-batched-tokens", str(answer.best.max_num_batched_tokens)]
    yield shlex.join([*command, *budget])


def _row(outcome: Outcome) -> str:
    name = "idle" if outcome.num_replicas == ALONE else str(outcome.num_replicas)
    start = f"{name:<9}{outcome.max_num_batched_tokens:>14}"
    if outcome.is_overloaded:
        return f"{start}{'too late: the queue grows':>30}"
    first = f"{outcome.ttft_p50_s:>15.3f} s{outcome.ttft_p99_s:>7.2f} s"
    speed = "" if outcome.num_replicas == ALONE else f"{outcome.tokens_per_s:.0f}"
    return f"{start}{first}{outcome.gap_p50_s:>8.3f} s{outcome.gap_p99_s:>7.3f} s{speed:>10}".rstrip()


def _load_in_words(load: Load) -> str:
    if load.trace is None:
        return f"{load.rate:g} requests/s of {load.prompt_tokens} prompt and {load.output_tokens} output tokens"
    return f"{load.trace.name}" + (f" at {load.rate:g} requests/s" if load.rate is not None else " as it was recorded")


def _prediction(load: Load, plan: MemoryPlan) -> Iterator[str]:
    """Yield where the times of steps come from."""
    shares = f"{SHARE_OF_BANDWIDTH:.0%} of its bandwidth and {SHARE_OF_PEAK:.0%} of its peak"
    yield f"predicted, not measured: {load.hardware} at {shares}, weights in {plan.weight_kind}"
    if plan.config.nnodes > 1:
        yield f"each server is a group of {plan.config.nnodes} hosts with {load.network_gbit:g} Gbit/s between them"
