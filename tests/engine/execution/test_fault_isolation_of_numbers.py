"""NaN and Inf end the request that computed them: the others keep every bit, and no later step reads them."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.scheduling.step_plan import Chunk, StepPlan
from model.mixtral import Mixtral
from smoe import LocalEngine, SamplingParams
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.isolated import Work, load, random_work, same_bits, serve, solo


@pytest.fixture(scope="module", params=[Shape(seed=1), Shape(window=24, seed=2)], ids=["full", "window"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    save_random_checkpoint(request.param, path)
    return path


class NanExperts:
    """Wrapper of a model's mixture of experts: chosen rows of one layer and step become NaN or Inf."""

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
        # The network in Python, so that a fault can be injected; its bits equal those of the single native call.
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

    def moe(self, x: Any, *arguments: Any) -> Any:
        out = self._moe(x, *arguments)
        if self._call == self._layer:
            out[self._rows] = self.rng.choice((float("nan"), float("inf"), float("-inf")))
        self._call += 1
        return out


def test_rows_with_nan_or_inf_end_their_own_requests_and_the_others_keep_every_bit(
    checkpoint: Path, scale: int
) -> None:
    """Faults hit either layer, prompts and decoding, with and without a step in flight, in a pool that is too small."""
    rng = random.Random(5)
    work = random_work(rng, 24)
    alone = solo(load(checkpoint, enable_prefix_caching=False), work)
    num_injected = num_equal = 0
    loads = [{"async_scheduling": ahead, "num_kv_blocks": blocks} for ahead in (False, True) for blocks in (24, 60)]
    engines = [load(checkpoint, max_num_batched_tokens=rng.choice((16, 48)), **settings) for settings in loads]
    while num_injected < 50 * scale:
        for engine in engines:
            first = engine._next_id + 1
            faults = NanExperts(engine, rng, 0.02)
            for index, completion in enumerate(serve(engine, work, rng)):
                if first + index in faults.failed:
                    # With a step in flight, a request may end well before the step that fails.
                    ahead = engine._engine.config.async_scheduling
                    assert completion.finish_reason == "error" or (ahead and same_bits(completion, alone[index]))
                    assert completion.token_ids == alone[index].token_ids[: len(completion.token_ids)]
                else:
                    assert same_bits(completion, alone[index]), index
                    num_equal += 1
            faults.restore()
            num_injected += faults.num_injected
            assert all(map(same_bits, serve(engine, work[:6], rng), alone)), "something was left behind"
    assert num_equal > num_injected, "too few requests were left to compare"


@pytest.mark.parametrize("ahead", [False, True])
def test_a_position_with_nan_is_found_anywhere_in_a_prompt(checkpoint: Path, ahead: bool) -> None:
    """Token 0 has a NaN embedding: first, in the middle or last in a prompt. Prefixes shared with other prompts end
    before it."""
    rng = random.Random(11)
    work = [
        (prompt, msgspec.structs.replace(params, logit_bias={0: -1e9}, prompt_logprobs=False))
        for prompt, params in random_work(rng, 16)
    ]
    alone = solo(load(checkpoint, enable_prefix_caching=False), work)
    engine = load(checkpoint, async_scheduling=ahead, max_num_batched_tokens=16)
    engine._engine.loaded.runner.model.weights.embedding[0] = float("nan")
    mixed: list[Work] = []
    for prompt, params in work:
        place = rng.choice((0, len(prompt) // 2, len(prompt)))
        mixed += [(prompt, params), ([*prompt[:place], 0, *prompt[place:]], params)]
    for index, completion in enumerate(serve(engine, mixed, rng)):
        if index % 2:
            assert completion.finish_reason == "error" and not completion.token_ids
        else:
            assert same_bits(completion, alone[index // 2])


def test_a_failed_requests_blocks_are_zeroed_before_reuse(checkpoint: Path) -> None:
    engine = load(checkpoint, num_kv_blocks=20, enable_prefix_caching=False)
    pool = engine._engine.loaded.kv_pool
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    bad = engine.add(list(range(3, 20)), params)
    engine.step()
    [sequence] = engine._engine.scheduler.requests.unfinished.values()
    blocks = list(sequence.block_table)
    pool.k[:, blocks[0]] = pool.v[:, blocks[0]] = float("nan")
    outputs = engine.step()
    assert [output.request_id for output in outputs] == [bad] and outputs[0].finish_reason == "error"
    assert pool.k.isnan().any()
    chunks: list[Chunk] = []
    launch = engine._engine.loaded.runner.launch

    def checked(plan: StepPlan) -> Any:
        assert not pool.k.isnan().any() and not pool.v.isnan().any(), "a step began with a NaN in the cache"
        chunks.extend(plan.chunks)
        return launch(plan)

    engine._engine.loaded.runner.launch = checked  # type: ignore[method-assign]
    engine.generate([4, 5], params)
    assert chunks


def test_a_request_cancelled_before_its_fault_is_found_leaves_no_nan_behind(checkpoint: Path) -> None:
    engine = load(checkpoint, async_scheduling=True, num_kv_blocks=20, enable_prefix_caching=False)
    pool = engine._engine.loaded.kv_pool
    bad = engine.add(list(range(3, 20)), SamplingParams(max_tokens=30, ignore_eos=True))
    engine.step()
    engine.step()
    [sequence] = engine._engine.scheduler.requests.unfinished.values()
    pool.k[:, sequence.block_table[0]] = float("nan")
    engine.step()  # launched; its results are not read yet
    engine.abort(bad)
    engine.generate([4, 5], SamplingParams(max_tokens=3, ignore_eos=True))
    assert not pool.k.isnan().any()
