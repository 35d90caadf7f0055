"""Cost of the scheduler per generated token, in nanoseconds: python -m tests.measure.scheduler [RUNS]

plan() and apply() alone, without a model. Prints the fastest run of each load, so that other work on the machine
matters little.
"""

import random
import sys
import time

from engine.scheduling.scheduler import Scheduler
from engine.scheduling.step_plan import Sampled, StepPlan, StepResult
from tests.support.scheduler_bench import VOCAB, Bench, random_prompt

NUM_REQUESTS, NUM_STEPS, PROMPT_LEN = 64, 400, 60


def decode(window: int | None, *, ahead: bool) -> float:
    """Return ns per token while NUM_REQUESTS requests decode. `ahead`: with one step in flight."""
    bench = Bench(num_blocks=NUM_REQUESTS * 40, block_size=16, window=window, budget=512, max_num_seqs=NUM_REQUESTS)
    _add(bench, NUM_REQUESTS, NUM_STEPS + 100)
    return _ns_per_token(bench.scheduler, ahead=ahead)


def arrivals() -> float:
    """Return ns per token, including add(), while short requests arrive and end all the time."""
    bench = Bench(num_blocks=600, block_size=16, budget=512, max_num_seqs=NUM_REQUESTS)
    start, num_tokens = time.perf_counter(), 0
    for step in range(NUM_STEPS):
        _add(bench, 2, 12, seed=step)
        plan = bench.scheduler.plan(float(step))
        num_tokens += len(bench.scheduler.apply(plan, _result(plan), float(step)))
    return (time.perf_counter() - start) / num_tokens * 1e9


def _add(bench: Bench, count: int, max_tokens: int, seed: int = 0) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        bench.add(random_prompt(rng, PROMPT_LEN, PROMPT_LEN), max_tokens, ignore_eos=True)


def _ns_per_token(scheduler: Scheduler, *, ahead: bool) -> float:
    seconds, num_tokens = 0.0, 0
    in_flight: list[tuple[StepPlan, StepResult]] = []
    for step in range(NUM_STEPS):
        start = time.perf_counter()
        plan = scheduler.plan(float(step))
        seconds += time.perf_counter() - start
        in_flight.append((plan, _result(plan)))
        if len(in_flight) > ahead:
            completed, result = in_flight.pop(0)
            start = time.perf_counter()
            outputs = scheduler.apply(completed, result, float(step))
            seconds += time.perf_counter() - start
            num_tokens += len(outputs)
    return seconds / num_tokens * 1e9


def _result(plan: StepPlan) -> StepResult:
    return StepResult({c.sequence.request_id: Sampled((c.start * 7) % VOCAB) for c in plan.chunks if c.samples})


def main(num_runs: int) -> None:
    loads = {
        "decode": lambda: decode(None, ahead=False),
        "decode, window, one step ahead": lambda: decode(256, ahead=True),
        "arrivals": arrivals,
    }
    for name, load in loads.items():
        sys.stdout.write(f"{name:32s} {min(load() for _ in range(num_runs)):8.0f} ns/token\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
