"""python -m tests.measure.scale.capacity_plan [--shape bench-400m|tiny] [--loads 0.3,0.5,0.7,0.85] [--rounds N]
    [--seconds N] [--quantization int8] [--threads N]

Compare what `smoe plan --rate` predicts with what a server does, at four rates: first tokens and gaps (p50 and p99)
and tokens per second. Both get the same arrivals and lengths. Times of steps are those of `smoe bench steps` on the
same checkpoint, which has random weights, before and after each rate: a shared machine's speed changes within minutes.
It changes within a rate, too, so the rates are measured in several rounds, and the verdict is by the median of each
error. "replayed" is the error of the scheduler in virtual time with the steps' own times, out of the run's step log:
what is wrong there is wrong in the queue, and what is wrong in the prediction alone is wrong in the times of steps.
Their sum in the run, as a share of what the calibration says of the same steps, is printed too. For a machine without
other load; about nine minutes for each round. Exits with 1 if a bar is missed.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import msgspec

from engine.capacity.machine.host_resources import available_bytes
from engine.capacity.memory_plan import plan_memory
from engine.capacity.new_scheduler import make_scheduler
from engine.config import EngineConfig
from engine.planning.fitted_steps import FittedStepTimes, read_fitted
from engine.planning.logged_steps import LoggedStep, read_step_log
from engine.planning.replicas import percentile
from engine.planning.virtual_engine import Arrival, Timeline, VirtualEngine
from engine.scheduling.scheduler import Scheduler
from server.bench.workload import poisson_arrivals
from server.cli.run.own_server import own_server
from tests.support.checkpoints.mistral_tokenizers import V1
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.replayed_steps import behind_requests, replay

VOCAB_SIZE = 32000
SHAPES = {
    "bench-400m": Shape(1024, 8, 16, 4, 64, 1792, vocab_size=VOCAB_SIZE),
    "tiny": Shape(vocab_size=VOCAB_SIZE),
}
BUDGET = 128  # of tokens in a step
PROMPT_TOKENS, OUTPUT_TOKENS = (32, 256), (16, 64)
LOADS = (0.3, 0.5, 0.7, 0.85)  # as shares of the one at which the steps' times leave no idle moment
BARS = {"first token p50": 0.1, "first token p99": 0.2, "gap p50": 0.1, "gap p99": 0.2, "tokens/s": 0.1}
CLIENTS = "1,2,4,8,16"  # of the loops of a calibration
NUM_WARM_UP = 2  # requests of `smoe bench serve` before the measured ones
FLAGS = ["--max-num-batched-tokens", str(BUDGET), "--max-num-seqs", "32", "--max-model-len", "1024"]

Figures: TypeAlias = Mapping[str, float]  # by the names in BARS
Found: TypeAlias = Mapping[str, Figures]  # predicted, measured, replayed


def smoe(*arguments: str) -> Any:
    """Run a command of smoe that prints JSON."""
    result = subprocess.run([sys.executable, "-m", "server", *arguments], stdout=subprocess.PIPE, check=True)
    return json.loads(result.stdout)


def arrivals_of(rate: float, seconds: float) -> list[Arrival]:
    rng = random.Random(3)
    times = poisson_arrivals(rate, random.Random(4))
    return [
        Arrival(next(times), rng.randint(*PROMPT_TOKENS), rng.randint(*OUTPUT_TOKENS))
        for _ in range(max(20, round(rate * seconds)))
    ]


def calibrated(flags: Sequence[str], folder: Path, seconds: float) -> dict[str, Any]:
    """Measure the steps as `smoe plan` wants them."""
    lengths = ["--prompt-tokens", "{},{}".format(*PROMPT_TOKENS), "--output-tokens", "{},{}".format(*OUTPUT_TOKENS)]
    loops = ["--clients", CLIENTS, "--seconds", f"{seconds:g}", "--vocab-size", str(VOCAB_SIZE)]
    result: dict[str, Any] = smoe("bench", "steps", str(folder), *flags, *lengths, *loops, "--json")
    return result


def fitted(*measured: dict[str, Any]) -> FittedStepTimes:
    """Return the times of the steps of several measurements."""
    request_s = sum(result["request_s"] for result in measured) / len(measured)
    return read_fitted({"steps": [step for result in measured for step in result["steps"]], "request_s": request_s})


def full_rate(times: FittedStepTimes) -> float:
    """Return the requests per second of steps that are always full: 32 decoding rows beside chunks of prompts."""
    rows_per_request = sum(PROMPT_TOKENS) / 2 + sum(OUTPUT_TOKENS) / 2
    return BUDGET / times.rows_s(BUDGET) / rows_per_request


def new_scheduler(config: EngineConfig) -> Scheduler:
    plan = plan_memory(config, available_bytes())
    assert plan.limits is not None
    return make_scheduler(config, plan.model, replace(plan.limits, max_num_batched_tokens=BUDGET))


def predicted(config: EngineConfig, times: FittedStepTimes, arrivals: Sequence[Arrival]) -> Figures:
    engine = VirtualEngine(new_scheduler(config), times.step_s, times.request_s)
    return figures(engine.run(arrivals, max_ttft_s=1e9))


def replayed(config: EngineConfig, steps: Sequence[LoggedStep], request_s: float) -> Figures:
    return figures(replay(new_scheduler(config), behind_requests(steps, NUM_WARM_UP), request_s)[0])


def figures(timeline: Timeline) -> Figures:
    ttft_s, gaps_s = sorted(timeline.ttft_s), sorted(timeline.gaps_s)
    return {
        "first token p50": percentile(ttft_s, 50),
        "first token p99": percentile(ttft_s, 99),
        "gap p50": percentile(gaps_s, 50),
        "gap p99": percentile(gaps_s, 99),
        "tokens/s": timeline.tokens_per_s,
    }


def measured(url: str, arrivals: Sequence[Arrival], folder: Path) -> Figures:
    trace = folder / "trace.jsonl"
    lines = (
        {"arrival_s": a.due_s, "prompt_tokens": a.num_prompt_tokens, "output_tokens": a.num_output_tokens}
        for a in arrivals
    )
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    [run] = smoe("bench", "serve", url, "--trace", str(trace), "--vocab-size", str(VOCAB_SIZE), "--json")["runs"]
    assert not run["errors"], run["error_messages"]
    ttft_s, gap_s = run["ttft_s"], run["gap_s"]
    return {
        "first token p50": ttft_s["p50"],
        "first token p99": ttft_s["p99"],
        "gap p50": gap_s["p50"],
        "gap p99": gap_s["p99"],
        "tokens/s": run["output_tokens_per_s"],
    }


def errors(found: Found, kind: str) -> Figures:
    """Return by figure how far the predicted or replayed one is from the measured one, as a share of that."""
    return {name: found[kind][name] / value - 1 if value else inf for name, value in found["measured"].items()}


def show(rate: float, words: str) -> None:
    print(f"{rate:8.2f}/s  {words}", flush=True)  # noqa: T201


def show_round(rate: float, found: Found) -> None:
    """Print the figures of a rate in one round."""
    predicted_by, replayed_by = errors(found, "predicted"), errors(found, "replayed")
    for name, value in found["measured"].items():
        figures = f"{found['predicted'][name]:12.4f}{value:12.4f}"
        show(rate, f"{name:<16}{figures}{predicted_by[name]:+10.1%}{replayed_by[name]:+10.1%}")


def show_verdicts(rate: float, rounds: Sequence[Found]) -> bool:
    """Print the medians of the errors of a rate's rounds; return whether all are within their bars."""
    holds = True
    for name, bar in BARS.items():
        error, replay_error = (
            median(errors(found, kind)[name] for found in rounds) for kind in ("predicted", "replayed")
        )
        verdict = "holds" if abs(error) <= bar else "MISSED"
        show(rate, f"{name:<16}{error:+10.1%}{replay_error:+10.1%}{bar:8.0%}  {verdict}")
        holds = holds and abs(error) <= bar
    return holds


def keep(folder: Path, name: str, steps: Sequence[LoggedStep], result: Figures) -> None:
    """Write a run's step log and figures, such as those in tests/engine/planning/recorded/."""
    log = b"".join(msgspec.json.encode(step) + b"\n" for step in steps)
    (folder / f"{name}.jsonl").write_bytes(log)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


def run(folder: Path, flags: Sequence[str], config: EngineConfig, options: argparse.Namespace) -> bool:
    """Measure each rate between two calibrations, in several rounds; return True if the medians hold all bars."""
    before = calibrated(flags, folder, options.calibration_seconds)
    rates = {load: load * full_rate(fitted(before)) for load in options.loads}
    rounds: dict[float, list[Found]] = {load: [] for load in rates}
    print(f"{'rate':>10}  {'':<16}{'predicted':>12}{'measured':>12}{'error':>10}{'replayed':>10}")  # noqa: T201
    for index in range(options.rounds):
        for load, rate in rates.items():
            arrivals = arrivals_of(rate, options.seconds)
            steps, result = served(folder, flags, arrivals)
            after = calibrated(flags, folder, options.calibration_seconds)
            times, before = fitted(before, after), after
            found = compared(config, times, arrivals, steps, result)
            rounds[load].append(found)
            if options.keep is not None:
                keep(options.keep, f"{100 * load:.0f}-{index}", steps, {"request_s": times.request_s, **result})
            show(rate, f"steps took {speed(steps, times):.1%} of the times that were measured before and after")
            show_round(rate, found)
    print(f"\n{'rate':>10}  {'medians':<16}{'error':>10}{'replayed':>10}{'bar':>8}  verdict")  # noqa: T201
    verdicts = [show_verdicts(rate, rounds[load]) for load, rate in rates.items()]
    return all(verdicts)


def compared(
    config: EngineConfig,
    times: FittedStepTimes,
    arrivals: Sequence[Arrival],
    steps: Sequence[LoggedStep],
    result: Figures,
) -> Found:
    return {
        "predicted": predicted(config, times, arrivals),
        "measured": result,
        "replayed": replayed(config, steps, times.request_s),
    }


def speed(steps: Sequence[LoggedStep], times: FittedStepTimes) -> float:
    """Return the time of a run's steps as a share of what the calibrations say."""
    rated = behind_requests(steps, NUM_WARM_UP)
    return sum(step.seconds for step in rated) / sum(times.shape_s(step.shape) for step in rated)


def served(folder: Path, flags: Sequence[str], arrivals: Sequence[Arrival]) -> tuple[list[LoggedStep], Figures]:
    """Serve the arrivals; return the steps and the clients' figures."""
    log = folder / "steps.jsonl"
    log.unlink(missing_ok=True)
    measured_flags = [
        *flags,
        "--no-enable-prefix-caching",
        "--speculation",
        "off",
        "--step-log",
        str(log),
    ]  # as planned
    with own_server([str(folder), *measured_flags], folder / "server.log") as server:
        server.wait_ready(lambda words: None)
        result = measured(server.url, arrivals, folder)
        return read_step_log(log), result


def shares(text: str) -> tuple[float, ...]:
    """Read shares that are divided by commas."""
    return tuple(float(share) for share in text.split(","))


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="bench-400m")
    parser.add_argument("--loads", type=shares, default=LOADS, help="shares of the load of steps that are always full")
    parser.add_argument("--rounds", type=int, default=3, help="of all rates, one after the other")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each rate in a round")
    parser.add_argument("--calibration-seconds", type=float, default=5.0, help="of each loop of `smoe bench steps`")
    parser.add_argument("--keep", type=Path, help="folder that gets the step log and the figures of each rate")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--threads", type=int, default=1, help="of the engine; the client needs a core, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.model").symlink_to(V1)
        save_random_checkpoint(SHAPES[options.shape], folder)
        chosen = ["--quantization", options.quantization, "--threads", str(options.threads)]
        config = EngineConfig(
            model=str(folder), max_num_seqs=32, max_model_len=1024, enable_prefix_caching=False,
            quantization=options.quantization,
        )  # fmt: skip
        holds = run(folder, [*chosen, *FLAGS], config, options)
    print("all bars hold" if holds else "a bar is missed")  # noqa: T201
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
