"""A fault in one request ends that request alone: on the real kernels, its batch mates keep every bit."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from engine.errors import FatalEngineError
from engine.plan import Chunk, StepPlan
from engine.types import Request
from model.mixtral import Mixtral
from smoe import Completion, LocalEngine, SamplingParams
from tests.checkpoints import Shape, save_random_checkpoint

VOCAB, MAX_MODEL_LEN = 101, 160
Work = tuple[list[int], SamplingParams]


@pytest.fixture(scope="module", params=[Shape(seed=1), Shape(window=24, seed=2)], ids=["full", "window"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    save_random_checkpoint(request.param, path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a window makes no difference."""
    path = tmp_path_factory.mktemp("plain")
    save_random_checkpoint(Shape(seed=1), path)
    return path


def load(path: Path, **settings: Any) -> LocalEngine:
    torch.set_num_threads(1)
    common = {"backend": "native", "dtype": "float32", "threads": 1, "max_model_len": MAX_MODEL_LEN, "block_size": 8}
    return LocalEngine(path, check_integrity=True, **common | settings)


def random_work(rng: random.Random, count: int) -> list[Work]:
    """Every kind of state that a step could advance twice: penalties, seeds, words of several tokens, prompt scores."""
    work: list[Work] = []
    for _ in range(count):
        stem = rng.choice(work)[0][: rng.randint(0, 40)] if work and rng.random() < 0.4 else []
        prompt = stem + [rng.randrange(3, VOCAB) for _ in range(rng.choice((1, 3, 20, 50)))]
        params = SamplingParams(
            max_tokens=rng.choice((1, 8, 20)),
            temperature=rng.choice((0.0, 1.0)),
            frequency_penalty=rng.choice((0.0, 0.7)),
            repetition_penalty=rng.choice((1.0, 1.3)),
            bad_words=rng.choice(((), ((7, 8), (9,)))),
            seed=rng.randrange(2**63),
            num_logprobs=2,
            prompt_logprobs=rng.random() < 0.2,
            ignore_eos=True,
        )
        work.append((prompt, params))
    return work


def solo(engine: LocalEngine, work: list[Work]) -> list[Completion]:
    return [engine.generate(prompt, params)[0] for prompt, params in work]


def serve(engine: LocalEngine, work: list[Work], rng: random.Random) -> list[Completion]:
    """All of it, arriving a few at a time."""
    ids: list[int] = []
    completions: dict[int, Completion] = {}
    while len(ids) < len(work) or engine.has_work():
        for prompt, params in work[len(ids) : len(ids) + rng.choice((0, 2, 5))]:
            ids.append(engine.add(prompt, params))
            completions[ids[-1]] = Completion(prompt)
        for output in engine.step():
            completion = completions[output.request_id]
            assert completion.finish_reason is None, "told of after its end"
            completion.token_ids += output.token_ids
            completion.logprobs += output.logprobs or []
            completion.prompt_logprobs += output.prompt_logprobs or []
            completion.finish_reason, completion.error = output.finish_reason, output.error
    assert engine.stats.num_blocks_held == 0
    engine.check_integrity()
    return [completions[request_id] for request_id in ids]


def same_bits(got: Completion, alone: Completion) -> bool:
    return (got.token_ids, got.logprobs, got.prompt_logprobs, got.finish_reason) == (
        alone.token_ids,
        alone.logprobs,
        alone.prompt_logprobs,
        alone.finish_reason,
    )


class NanExperts:
    """Around a model's mixture of experts: in one layer of one step, chosen rows come out as `bad`."""

    def __init__(self, engine: LocalEngine, rng: random.Random, rate: float) -> None:
        self.runner = engine._engine.loaded.runner
        self.rng, self.rate = rng, rate
        self.failed: set[int] = set()  # request ids
        self.num_injected = 0
        self._rows: list[int] = []
        self._layer = 0
        self._call = 0
        self._launch, self._moe = self.runner.launch, self.runner.model.ops.moe
        self._forward = self.runner.model.forward
        # Line by line, where a fault can be put in; the bits are those of the whole network in one call.
        self.runner.model.forward = partial(Mixtral.forward, self.runner.model)  # type: ignore[method-assign]
        self.runner.launch = self.launch  # type: ignore[method-assign]
        self.runner.model.ops.moe = self.moe  # type: ignore[method-assign]

    def restore(self) -> None:
        self.runner.launch, self.runner.model.ops.moe = self._launch, self._moe  # type: ignore[method-assign]
        self.runner.model.forward = self._forward  # type: ignore[method-assign]

    def launch(self, plan: StepPlan) -> Any:
        self._rows, first = [], 0
        self._layer, self._call = self.rng.randrange(2), 0
        for chunk in plan.chunks:
            if self.rng.random() < self.rate:
                self._rows.append(first + self.rng.randrange(chunk.length))
                self.failed.add(chunk.sequence.request_id)
                self.num_injected += 1
            first += chunk.length
        return self._launch(plan)

    def moe(self, x: Any, weights: Any, choice: Any) -> Any:
        out = self._moe(x, weights, choice)
        if self._call == self._layer:
            out[self._rows] = self.rng.choice((float("nan"), float("inf"), float("-inf")))
        self._call += 1
        return out


def test_rows_without_numbers_end_their_own_requests_and_the_others_keep_every_bit(
    checkpoint: Path, scale: int
) -> None:
    """In either layer, in prompts and in decoding, with and without a step in flight, in a pool that is too small."""
    rng = random.Random(5)
    work = random_work(rng, 24)
    alone = solo(load(checkpoint, enable_prefix_caching=False), work)
    num_injected = num_whole = 0
    loads = [{"async_scheduling": ahead, "num_kv_blocks": blocks} for ahead in (False, True) for blocks in (24, 60)]
    engines = [load(checkpoint, max_num_batched_tokens=rng.choice((16, 48)), **settings) for settings in loads]
    while num_injected < 50 * scale:
        for engine in engines:
            first = engine._next_id + 1
            faults = NanExperts(engine, rng, 0.02)
            for index, completion in enumerate(serve(engine, work, rng)):
                if first + index in faults.failed:
                    # One step ahead, a request may end well while the step behind its end is the one that fails.
                    ahead = engine._engine.config.async_scheduling
                    assert completion.finish_reason == "error" or (ahead and same_bits(completion, alone[index]))
                    assert completion.token_ids == alone[index].token_ids[: len(completion.token_ids)]
                else:
                    assert same_bits(completion, alone[index]), index
                    num_whole += 1
            faults.restore()
            num_injected += faults.num_injected
            assert all(map(same_bits, serve(engine, work[:6], rng), alone)), "something was left behind"
    assert num_whole > num_injected, "too few requests were left to compare"


@pytest.mark.parametrize("ahead", [False, True])
def test_a_position_without_numbers_is_seen_wherever_it_stands_in_a_prompt(checkpoint: Path, ahead: bool) -> None:
    """Token 0 is embedded as NaN: at the start of a prompt, in the middle of a chunk, last. What the others share with
    such a prompt lies before it."""
    rng = random.Random(11)
    work = [
        (prompt, msgspec.structs.replace(params, logit_bias={0: -1e9}, prompt_logprobs=False))
        for prompt, params in random_work(rng, 16)
    ]
    alone = solo(load(checkpoint, enable_prefix_caching=False), work)
    engine = load(checkpoint, async_scheduling=ahead, max_num_batched_tokens=16)
    engine._engine.loaded.runner.model.weights.embedding[0] = float("nan")
    crowd: list[Work] = []
    for prompt, params in work:
        place = rng.choice((0, len(prompt) // 2, len(prompt)))
        crowd += [(prompt, params), ([*prompt[:place], 0, *prompt[place:]], params)]
    for index, completion in enumerate(serve(engine, crowd, rng)):
        if index % 2:
            assert completion.finish_reason == "error" and not completion.token_ids
        else:
            assert same_bits(completion, alone[index // 2])


@contextmanager
def raising(engine: LocalEngine, where: str, error: Callable[[StepPlan], Exception | None]) -> Iterator[None]:
    """Before a part is computed, or after all of it was: when the results are fetched."""
    runner = engine._engine.loaded.runner
    launch, finish = runner.launch, runner.finish

    def raise_for(plan: StepPlan) -> None:
        found = error(plan)
        if found is not None:
            raise found

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
    """From its k-th step on; None where it has fewer."""
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
def test_an_exception_that_does_not_come_back_ends_nobody_and_changes_no_bit(
    checkpoint: Path, where: str, ahead: bool
) -> None:
    """The step is computed twice, and what a request's sampling keeps is not advanced twice."""
    work = random_work(random.Random(8), 8)
    engine = load(checkpoint, async_scheduling=ahead, max_num_batched_tokens=24)
    alone = solo(load(checkpoint, enable_prefix_caching=False), work)
    rng = random.Random(9)
    with raising(engine, where, lambda _: RuntimeError("now and then") if rng.random() < 0.05 else None):
        assert all(map(same_bits, serve(engine, work, random.Random(7)), alone))


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't")]
)
def test_a_step_that_finds_no_memory_is_computed_in_parts_that_do(checkpoint: Path, error: Exception) -> None:
    """Down to a few positions at once, in the middle of a prompt whose scores are wanted."""
    work = random_work(random.Random(10), 8)
    work[0] = (list(range(3, 60)), SamplingParams(max_tokens=4, prompt_logprobs=True, num_logprobs=1, ignore_eos=True))
    engine = load(checkpoint, max_num_batched_tokens=48)
    alone = solo(load(checkpoint, enable_prefix_caching=False), work)
    with raising(engine, "launch", lambda plan: error if plan.num_tokens > 5 else None):
        assert all(map(same_bits, serve(engine, work, random.Random(7)), alone))


def test_without_memory_for_one_position_the_running_end_and_the_queue_goes_on(plain: Path) -> None:
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


def test_what_cannot_be_blamed_on_anyone_ends_the_running_and_the_queue_goes_on(plain: Path) -> None:
    """And it is not tried hundreds of times to find that out."""
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
def test_a_lost_device_is_the_end_and_nothing_is_tried_again(plain: Path, where: str, error: Exception) -> None:
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


def test_book_keeping_that_is_wrong_is_the_end(plain: Path) -> None:
    engine = load(plain)
    request_id = engine.add([5, 6], SamplingParams(max_tokens=3, ignore_eos=True))
    engine.step()
    engine._engine.scheduler.tables.pool.release(engine._engine.scheduler.live[request_id].block_table)
    with pytest.raises(FatalEngineError, match="book-keeping"):
        engine.step()


@pytest.mark.parametrize("prompt", [[5, VOCAB], [-1], [2**40], [5, "6"], [5, None]])
def test_a_token_that_is_none_of_the_models_ends_its_own_request(plain: Path, prompt: list[Any]) -> None:
    engine = load(plain)
    params = SamplingParams(max_tokens=4, ignore_eos=True, temperature=0.0)
    good, bad = engine.add([5, 6], params), engine.add(prompt, params)
    ends: dict[int, str | None] = {}
    while engine.has_work():
        ends |= {output.request_id: output.finish_reason for output in engine.step() if output.finish_reason}
    assert ends == {bad: "error", good: "length"}


@pytest.mark.parametrize("fields", [{"top_k": 2**70}, {"logit_bias": {5: "much"}}, {"seed": "x"}])
def test_a_parameter_that_no_array_takes_ends_its_own_request(plain: Path, fields: dict[str, Any]) -> None:
    """The server refuses these; whoever uses the engine directly may not."""
    engine = load(plain)
    params = SamplingParams(max_tokens=4, ignore_eos=True, temperature=0.0)
    [alone] = solo(engine, [([5, 6], params)])
    bad = engine.add([7, 8], SamplingParams(**{"max_tokens": 4, "ignore_eos": True} | fields))
    good = engine.add([5, 6], params)
    tokens: dict[int, list[int]] = {bad: [], good: []}
    ends: dict[int, str | None] = {}
    while engine.has_work():
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
            ends |= {output.request_id: output.finish_reason} if output.finish_reason else {}
    assert ends == {bad: "error", good: "length"}
    assert tokens[good] == alone.token_ids


def test_expert_counts_that_fail_stop_counting_and_nothing_else(plain: Path) -> None:
    engine = load(plain)
    params = SamplingParams(max_tokens=4, ignore_eos=True, temperature=0.0)
    [alone] = solo(engine, [([5, 6], params)])
    for broken in ("record", "take_new"):
        counts = engine._engine.loaded.runner.expert_counts
        if counts is not None:
            setattr(counts, broken, lambda *_: 1 / 0)
            counts.is_due = lambda _: True  # type: ignore[method-assign]
        [again] = solo(engine, [([5, 6], params)])
        assert same_bits(again, alone)
    assert engine.experts().layers == []


def test_a_failed_requests_blocks_are_zeros_before_they_are_used_again(plain: Path) -> None:
    engine = load(plain, num_kv_blocks=20, enable_prefix_caching=False)
    pool = engine._engine.loaded.kv_pool
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    bad = engine.add(list(range(3, 20)), params)
    engine.step()
    [sequence] = engine._engine.scheduler.live.values()
    blocks = list(sequence.block_table)
    pool.k[:, blocks[0]] = pool.v[:, blocks[0]] = float("nan")
    outputs = engine.step()
    assert [output.request_id for output in outputs] == [bad] and outputs[0].finish_reason == "error"
    assert pool.k.isnan().any()
    chunks: list[Chunk] = []
    launch = engine._engine.loaded.runner.launch

    def watched(plan: StepPlan) -> Any:
        assert not pool.k.isnan().any() and not pool.v.isnan().any(), "a step began with a NaN in the cache"
        chunks.extend(plan.chunks)
        return launch(plan)

    engine._engine.loaded.runner.launch = watched  # type: ignore[method-assign]
    engine.generate([4, 5], params)
    assert chunks


def test_a_request_that_was_cancelled_before_its_fault_was_seen_leaves_no_fault_behind(plain: Path) -> None:
    engine = load(plain, async_scheduling=True, num_kv_blocks=20, enable_prefix_caching=False)
    pool = engine._engine.loaded.kv_pool
    bad = engine.add(list(range(3, 20)), SamplingParams(max_tokens=30, ignore_eos=True))
    engine.step()
    engine.step()
    [sequence] = engine._engine.scheduler.live.values()
    pool.k[:, sequence.block_table[0]] = float("nan")
    engine.step()  # launched, and not yet looked at
    engine.abort(bad)
    engine.generate([4, 5], SamplingParams(max_tokens=3, ignore_eos=True))
    assert not pool.k.isnan().any()


def test_a_request_that_cannot_be_queued_is_told(plain: Path) -> None:
    engine = load(plain)
    engine._engine.add(Request(7, [5], SamplingParams(max_tokens=4), expert_mask=[[None]]))  # type: ignore[list-item]
    engine._engine.add(Request(8, [5], SamplingParams(max_tokens=4), priority=None))  # type: ignore[arg-type]
    outputs = engine._engine.step().outputs
    assert {7} <= {output.request_id for output in outputs if output.finish_reason == "error"}
