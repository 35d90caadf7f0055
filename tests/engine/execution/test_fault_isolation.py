"""A fault in one request ends only that request: on the real kernels, the others keep every bit."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from engine.errors import FatalEngineError
from engine.scheduling.step_plan import StepPlan
from smoe import Completion, LocalEngine, SamplingParams
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.isolated import Work, load, random_work, same_bits, serve, solo


@pytest.fixture(scope="module", params=[Shape(seed=1), Shape(window=24, seed=2)], ids=["full", "window"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    save_random_checkpoint(request.param, path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a window, for tests in which a window makes no difference."""
    path = tmp_path_factory.mktemp("plain")
    save_random_checkpoint(Shape(seed=1), path)
    return path


@contextmanager
def raising(engine: LocalEngine, where: str, error: Callable[[StepPlan], Exception | None]) -> Iterator[None]:
    """Raise `error(plan)` before a step is computed, or after it, when its results are fetched."""
    runner = engine._engine.loaded.runner
    launch, finish = runner.launch, runner.finish

    def raise_for(plan: StepPlan) -> None:
        exception = error(plan)
        if exception is not None:
            raise exception

    def before(plan: StepPlan) -> Any:
        raise_for(plan)
        return launch(plan)

    def after(step: Any) -> Any:
        result = finish(step)
        raise_for(step.plan)
        return result

    if where == "launch":
        runner.launch = before  # type: ignore[method-assign]
    else:
        runner.finish = after  # type: ignore[method-assign]
    try:
        yield
    finally:
        runner.launch, runner.finish = launch, finish  # type: ignore[method-assign]


def has(plan: StepPlan, request_id: int) -> bool:
    return any(chunk.sequence.request_id == request_id for chunk in plan.chunks)


@pytest.mark.parametrize("where", ["launch", "finish"])
@pytest.mark.parametrize("ahead", [False, True])
def test_an_exception_at_every_step_that_one_request_causes_ends_that_one(
    checkpoint: Path, where: str, ahead: bool
) -> None:
    work = [
        (prompt, msgspec.structs.replace(params, max_tokens=5)) for prompt, params in random_work(random.Random(6), 4)
    ]
    engine = load(checkpoint, async_scheduling=ahead, max_num_batched_tokens=24, enable_prefix_caching=False)
    alone = solo(engine, work)
    num_failures = 0
    for index in range(len(work)):
        k = 1
        while (completions := _served_with_one_that_raises(engine, work, index, k, where)) is not None:
            num_failures += 1
            assert completions[index].finish_reason == "error"
            assert "failed while computing" in (completions[index].error or "")
            completions[index].token_ids += alone[index].token_ids[len(completions[index].token_ids) :]
            for other, completion in enumerate(completions):
                assert completion.token_ids == alone[other].token_ids
                assert same_bits(completion, alone[other]) or other == index
            k += 1
    assert num_failures > 20, "the scenario was meant to have more steps"


def _served_with_one_that_raises(
    engine: LocalEngine, work: list[Work], index: int, k: int, where: str
) -> list[Completion] | None:
    """Serve all requests; one raises from its k-th step on. Return None if it has fewer steps."""
    culprit, passed = engine._next_id + 1 + index, 0

    def error(plan: StepPlan) -> Exception | None:
        nonlocal passed
        passed += has(plan, culprit)
        return ValueError("its own") if has(plan, culprit) and passed >= k else None

    with raising(engine, where, error):
        completions = serve(engine, work, random.Random(7))
    return completions if completions[index].finish_reason == "error" else None


@pytest.mark.parametrize("where", ["launch", "finish"])
@pytest.mark.parametrize("ahead", [False, True])
def test_an_exception_that_does_not_recur_ends_no_request_and_changes_no_bit(
    checkpoint: Path, where: str, ahead: bool
) -> None:
    """The step is computed twice; the sampling state of a request must not advance twice."""
    work = random_work(random.Random(8), 8)
    engine = load(checkpoint, async_scheduling=ahead, max_num_batched_tokens=24)
    alone = solo(load(checkpoint, enable_prefix_caching=False), work)
    rng = random.Random(9)
    with raising(engine, where, lambda _: RuntimeError("now and then") if rng.random() < 0.05 else None):
        assert all(map(same_bits, serve(engine, work, random.Random(7)), alone))


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't")]
)
def test_a_step_without_enough_memory_is_computed_in_smaller_parts(checkpoint: Path, error: Exception) -> None:
    """Parts have a few positions, in the middle of a prompt that is scored too."""
    work = random_work(random.Random(10), 8)
    work[0] = (list(range(3, 60)), SamplingParams(max_tokens=4, prompt_logprobs=True, num_logprobs=1, ignore_eos=True))
    engine = load(checkpoint, max_num_batched_tokens=48)
    alone = solo(load(checkpoint, enable_prefix_caching=False), work)
    with raising(engine, "launch", lambda plan: error if plan.num_tokens > 5 else None):
        assert all(map(same_bits, serve(engine, work, random.Random(7)), alone))


def test_without_memory_for_one_position_the_running_requests_end_and_the_queue_continues(plain: Path) -> None:
    engine = load(plain, max_num_seqs=2)
    params = SamplingParams(max_tokens=4, ignore_eos=True, temperature=0.0)
    alone = solo(engine, [([5, 6], params)])
    ids = [engine.add([5, 6], params) for _ in range(4)]
    with raising(engine, "launch", lambda _: MemoryError()):
        ended = {output.request_id: output for output in engine.step()}
    assert list(ended) == ids[:2]
    assert all("too little memory" in (output.error or "") for output in ended.values())
    tokens: dict[int, list[int]] = {ids[2]: [], ids[3]: []}
    while engine.has_work():
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
    assert list(tokens.values()) == [alone[0].token_ids] * 2


def test_a_fault_of_no_single_request_ends_the_running_requests_and_the_queue_continues(plain: Path) -> None:
    """A few attempts suffice to find out that no single request is at fault."""
    engine = load(plain, max_num_seqs=32, max_num_batched_tokens=64)
    params = SamplingParams(max_tokens=4, ignore_eos=True, temperature=0.0)
    ids = [engine.add([5, 6], params) for _ in range(40)]
    attempts = 0

    def error(_: StepPlan) -> Exception:
        nonlocal attempts
        attempts += 1
        return RuntimeError("nothing works")

    with raising(engine, "launch", error):
        ended = [output.request_id for output in engine.step() if output.finish_reason == "error"]
    assert ended == ids[:32] and attempts < 20
    while engine.has_work():
        ended += [output.request_id for output in engine.step() if output.finish_reason == "length"]
    assert ended == ids
    assert engine.stats.num_blocks_held == 0


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    ],
)
@pytest.mark.parametrize("where", ["launch", "finish"])
def test_a_lost_device_ends_the_engine_without_another_attempt(plain: Path, where: str, error: Exception) -> None:
    engine = load(plain)
    engine.add([5, 6], SamplingParams(max_tokens=4))
    attempts = 0

    def lost(_: StepPlan) -> Exception:
        nonlocal attempts
        attempts += 1
        return error

    with raising(engine, where, lost), pytest.raises(FatalEngineError, match="the device is lost"):
        engine.step()
    assert attempts == 1
