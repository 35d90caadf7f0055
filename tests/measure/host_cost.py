"""Host time of a decode step without the network: python -m tests.measure.host_cost [--kind KIND] [REQUESTS ...]

KIND: `plain` requests, or requests with `penalties`, `logprobs`, `min-tokens` or a `grammar`. The network, the sampling
kernel and the grammar are fakes that answer at once; all other code is the product's own. Prints for each number of
running requests the microseconds of each part (median over the steps), their sum, and the sum per request.
"""

import argparse
import gc
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from engine.execution.model_runner import InFlightStep, ModelRunner
from engine.execution.persistent_batch import PersistentBatch
from engine.execution.sampler import Sampler
from engine.messages import StepDone, encode_frame
from engine.scheduling.blocks.geometry import BlockGeometry
from engine.scheduling.blocks.manager import BlockManager
from engine.scheduling.blocks.pool import BlockPool
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.step_plan import StepPlan, StepResult
from engine.types import Request, RequestOutput, SamplingParams, StepOutput, StepStats
from model.config import ModelConfig
from model.sampling_batch import SampledRows, SamplingRows
from tests.support.kernels.attention_cases import Heads

BLOCK_SIZE, MAX_LEN, NUM_STEPS, VOCAB = 16, 1024, 200, 32_000
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalties": {"presence_penalty": 0.5},
    "logprobs": {"num_logprobs": 5},
    "min-tokens": {"min_tokens": MAX_LEN // 2},
    "grammar": {},
}


class NoNetwork:
    """Returns prepared logits that are never read: only the product's own code takes time."""

    config: ModelConfig = Heads().config

    def forward(self, batch: Any, _pool: object) -> Tensor:
        return _logits(len(batch.logit_rows))


class NoSampling:
    """Returns token 3, prepared."""

    def sample(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        return _answers(len(logits))


class AllAllowed:
    """Grammar whose masks are there already."""

    def prepare(self, token_ids: object, start: int) -> bool:
        return True

    def bitmask(self, token_ids: object, start: int) -> bytes:
        return _mask()


@cache
def _mask() -> bytes:
    return b"\xff" * (VOCAB // 8)


@cache
def _logits(count: int) -> Tensor:
    return torch.empty(count, 1)


@cache
def _answers(count: int) -> SampledRows:
    ids, nothing = torch.full((count,), 3), torch.empty(count, 0)
    return SampledRows(ids, torch.zeros(count, dtype=torch.uint8), torch.zeros(count), nothing.int(), nothing)


class Timed:
    """Records the seconds of each named call."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        self.seconds[name].append(time.perf_counter() - start)
        return result


def one_step(scheduler: Scheduler, runner: ModelRunner, timed: Timed) -> None:
    plan: StepPlan = timed("plan", lambda: scheduler.plan(0.0))
    flight: InFlightStep = timed("launch", lambda: runner.launch(plan))
    result: StepResult = timed("finish", lambda: runner.finish(flight))
    outputs: list[RequestOutput] = timed("apply", lambda: scheduler.apply(plan, result, 0.0))
    timed("encode", lambda: encode_frame(StepDone(StepOutput(outputs, StepStats()))))


def measure(num_requests: int, kind: str) -> dict[str, float]:
    """Return the median microseconds of each part of a step."""
    pool = BlockPool(num_requests * (MAX_LEN // BLOCK_SIZE))
    block_manager = BlockManager(pool, BlockGeometry(BLOCK_SIZE, None, 2048), prefix_caching=True)
    scheduler = Scheduler(
        block_manager, max_num_seqs=num_requests, max_num_batched_tokens=2048, max_model_len=MAX_LEN, eos_token_ids=[2]
    )
    for index in range(num_requests):
        params = SamplingParams(max_tokens=MAX_LEN // 2, temperature=1.0, seed=index, **KINDS[kind])
        matcher: Any = AllAllowed() if kind == "grammar" else None
        scheduler.add(Request(index, [5 + index, *range(5, 5 + index % 64)], params), matcher)
    rows = PersistentBatch(num_requests, MAX_LEN, BLOCK_SIZE, VOCAB, torch.device("cpu"))
    runner = ModelRunner(NoNetwork(), None, rows, Sampler(NoSampling(), rows, (2,)))  # type: ignore[arg-type]
    while len(scheduler.requests.running) < num_requests:
        one_step(scheduler, runner, Timed())
    gc.collect()
    gc.freeze()
    timed = Timed()
    for _ in range(NUM_STEPS):
        one_step(scheduler, runner, timed)
    return {name: 1e6 * statistics.median(seconds) for name, seconds in timed.seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", default="plain", choices=list(KINDS))
    parser.add_argument("requests", type=int, nargs="*", default=[1, 16, 64, 256])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for num_requests in options.requests:
        parts = measure(num_requests, options.kind)
        total = sum(parts.values())
        listed = "  ".join(f"{name} {us:6.0f}" for name, us in parts.items())
        sys.stdout.write(f"{num_requests:4d} running: {listed}  all {total:6.0f} us, {total / num_requests:.2f} each\n")


if __name__ == "__main__":
    main()
