"""`python -m tests.gpu.dry_run`: launch the engine's steps on CUDA tensors that do not exist. No GPU is needed.

torch must be built with CUDA. Its fake tensors have a device and a shape but no numbers, so that a step which reads one
on the host, or mixes tensors of the host with those of the GPU, raises. Kernels are not launched. Prints a line per
case; the exit code is 1 if one fails, 2 if torch lacks CUDA.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import torch
from msgspec.structs import replace
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.execution import device_transfer
from engine.scheduling.step_plan import StepPlan
from engine.types import SamplingParams
from model.mixtral import Mixtral
from model.mixtral_cuda_graphs import EagerRecorder, GraphedMixtral
from model.profile_step import run_profile_steps
from tests.support.kernels.launched_steps import PARAMS, chunk, chunks, launched_network, launched_pool, launched_runner

CUDA = torch.device("cuda", 0)


class NoEvent:
    """Stands for an event of CUDA, which needs a driver."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Make all tensors fake inside the `with` block. Pinned memory is fake too, and there are no events."""

    def unpinned(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype)

    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.Tensor, "pin_memory", unpinned))
        stack.enter_context(patch.object(torch.cuda, "Event", NoEvent))
        stack.enter_context(patch.object(device_transfer, "_to_pinned", unpinned))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield names and steps: those of requests with every kind of parameter, with and without graphs, and others."""
    for is_graphed in (False, True):
        kind = "with graphs" if is_graphed else "eager"
        for name, params in PARAMS.items():
            for length in (1, 5):
                yield f"{kind}, {length} positions, {name}", partial(_launch, is_graphed, params, length)
    yield "embeddings", _launch_embeddings
    yield "blocks are cleared", _clear_blocks
    yield "largest steps", _launch_largest


def _launch(is_graphed: bool, params: SamplingParams, length: int) -> None:
    model, pool = launched_network(CUDA), launched_pool(CUDA)
    runner = launched_runner(_graphed(model, pool) if is_graphed else model, pool)
    plan = StepPlan(chunks(params, length))
    for _ in range(2):  # the second step reuses the first one's arrays
        runner.launch(plan)
    without_experts = StepPlan((chunk(3, params, 1), chunk(4, SamplingParams(), 1)))  # what a graph represents
    runner.launch(without_experts)


def _graphed(model: Mixtral, pool: object) -> Mixtral:
    graphed = GraphedMixtral(model, pool, EagerRecorder(), 16, 30)  # type: ignore[arg-type]
    graphed.capture_all()
    return graphed


def _launch_embeddings() -> None:
    runner = launched_runner(launched_network(CUDA), launched_pool(CUDA))
    embedded = chunk(0, SamplingParams(max_tokens=0), 5, embedding_len=64)
    runner.launch(StepPlan((replace(embedded, samples=False), chunk(1, SamplingParams(), 1))))


def _clear_blocks() -> None:
    launched_runner(launched_network(CUDA), launched_pool(CUDA, "int8")).zero_blocks((1, 2))


def _launch_largest() -> None:
    run_profile_steps(launched_network(CUDA), 40, 8, 4, "int8")


def first_fault(step: Callable[[], None]) -> str:
    """Return the first line of a step's error, or nothing."""
    try:
        with fake_gpu():
            step()
    except Exception as error:  # noqa: BLE001 (reported)
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return ""


def read_is_noticed() -> bool:
    """Return True if a step that reads from the GPU, or waits for a count, fails, and one that does not passes."""

    def reads() -> None:
        torch.ones(2, device=CUDA).tolist()

    def counts() -> None:
        torch.arange(2, device=CUDA).repeat_interleave(torch.ones(2, dtype=torch.int64, device=CUDA))

    def mixes() -> None:
        torch.ones(2, device=CUDA).add_(torch.ones(2))

    def adds() -> None:
        torch.ones(2, device=CUDA).add_(1)

    return all(first_fault(step) for step in (reads, counts, mixes)) and not first_fault(adds)


def main() -> int:
    """Run all cases and return the exit code."""
    if torch.version.cuda is None:
        sys.stdout.write(f"torch {torch.__version__} is built without CUDA: install a CUDA build\n")
        return 2
    sys.stdout.write(f"torch {torch.__version__}, CUDA {torch.version.cuda}\n")
    faults = {} if read_is_noticed() else {"reads are noticed": "they are not"}
    for name, step in cases():
        fault = first_fault(step)
        sys.stdout.write(f"{'failed' if fault else 'ok':<8}{name}{': ' * bool(fault)}{fault}\n")
        faults |= {name: fault} if fault else {}
    sys.stdout.write(f"{len(faults)} failed\n" if faults else "all ok\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
