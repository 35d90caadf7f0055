"""Asynchronous scheduling plans a step while the one before is computed; tokens equal those of the synchronous loop."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from smoe import Completion, LocalEngine, SamplingParams
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint

Work = tuple[list[int], SamplingParams]

SETTINGS: dict[str, dict[str, Any]] = {
    "large pool": {"max_num_batched_tokens": 200},
    "small chunks": {"max_num_batched_tokens": 7},
    "preemption": {"max_num_batched_tokens": 40, "num_kv_blocks": 36, "block_size": 4, "max_model_len": 144},
}


@pytest.fixture(scope="module", params=[Shape(seed=1), Shape(window=24, seed=2)], ids=["full", "window"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shape, Path]:
    path = tmp_path_factory.mktemp("checkpoint")
    save_random_checkpoint(request.param, path)
    return request.param, path


def _random_work(rng: random.Random, count: int) -> list[Work]:
    """Draw requests with all sampling that depends on earlier tokens: penalties, bad words of several tokens, stops."""
    work: list[Work] = []
    for _ in range(count):
        stem = rng.choice(work)[0] if work and rng.random() < 0.3 else []
        prompt = (stem + [rng.randrange(3, 101) for _ in range(rng.choice((1, 5, 30, 60)))])[:100]
        params = SamplingParams(
            max_tokens=rng.choice((0, 1, 2, 40, 40, 40)),
            temperature=rng.choice((0.0, 0.8, 1.5)),
            top_p=rng.choice((1.0, 0.8)),
            repetition_penalty=rng.choice((1.0, 1.0, 1.4)),
            frequency_penalty=rng.choice((0.0, 0.7)),
            bad_words=rng.choice(((), ((7, 8), (9,)), tuple((a, b) for a in range(3, 60) for b in (5, 6)))),
            min_tokens=rng.choice((0, 2)),
            stop_token_ids=tuple(rng.sample(range(3, 101), 3)),
            ignore_eos=rng.random() < 0.5,
            seed=rng.randrange(2**63),
            num_logprobs=rng.choice((None, 2)),
            prompt_logprobs=rng.random() < 0.2,
        )
        work.append((prompt, params))
    return work


def _serve(engine: LocalEngine, work: list[Work], rng: random.Random) -> dict[int, Completion]:
    """Add the requests a few at a time and abort some; return the others by their index in `work`."""
    ids: list[int] = []
    completions: dict[int, Completion] = {}
    while len(ids) < len(work) or engine.has_work():
        for prompt, params in work[len(ids) : len(ids) + rng.choice((0, 1, 4, 8))]:
            ids.append(engine.add(prompt, params))
            completions[ids[-1]] = Completion(prompt)
        for output in engine.step():
            completion = completions[output.request_id]
            assert completion.finish_reason is None, "a request has an output after its end"
            completion.token_ids += output.token_ids
            completion.logprobs += output.logprobs or []
            completion.prompt_logprobs += output.prompt_logprobs or []
            completion.finish_reason, completion.error = output.finish_reason, output.error
        aborted = rng.choice(ids) if ids else 0
        if aborted in completions and aborted % 5 == 0:
            engine.abort(aborted)
            del completions[aborted]
    engine.check_integrity()
    assert engine.stats.num_blocks_held == 0
    return {ids.index(request_id): completion for request_id, completion in completions.items()}


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_one_step_ahead_gives_the_tokens_of_the_synchronous_loop(
    checkpoint: tuple[Shape, Path], backend: str, settings: str, scale: int
) -> None:
    torch.set_num_threads(1)
    shape, path = checkpoint
    rng = random.Random(f"{settings} {backend}")
    work = _random_work(rng, 25 * scale)
    common = {"backend": backend, "dtype": "float32", "threads": 1, "check_integrity": True} | SETTINGS[settings]
    synchronous = LocalEngine(path, async_scheduling=False, **common)
    ahead = LocalEngine(path, async_scheduling=True, **common)
    expected, got = _serve(synchronous, work, rng), _serve(ahead, work, rng)
    both = expected.keys() & got.keys()
    assert len(both) > len(work) // 2
    for index in both:
        assert got[index].token_ids == expected[index].token_ids, index
        assert got[index].finish_reason == expected[index].finish_reason, index
        for ours, theirs in (
            (got[index].logprobs, expected[index].logprobs),
            (got[index].prompt_logprobs, expected[index].prompt_logprobs),
        ):
            assert [entry.token_id for entry in ours] == [entry.token_id for entry in theirs]
            assert [e.logprob for e in ours] == pytest.approx([e.logprob for e in theirs], abs=1e-4)
    if settings == "preemption" and not shape.window:
        assert synchronous.num_preemptions and ahead.num_preemptions, "the pool is too large for a preemption"


def test_a_step_that_fails_one_step_ahead_ends_its_own_requests(checkpoint: tuple[Shape, Path]) -> None:
    engine = LocalEngine(checkpoint[1], backend="reference", dtype="float32", threads=1, async_scheduling=True)
    params = SamplingParams(max_tokens=20, ignore_eos=True, temperature=0.0)
    first = engine.add([5, 6], params)
    engine.step()
    engine._engine.loaded.runner.model.forward, forward = _broken, engine._engine.loaded.runner.model.forward  # type: ignore[method-assign]
    engine.step()
    engine._engine.loaded.runner.model.forward = forward  # type: ignore[method-assign]
    second = engine.add([5, 6], params)
    ends: dict[int, str | None] = {}
    while engine.has_work():
        ends |= {output.request_id: output.finish_reason for output in engine.step() if output.finish_reason}
    assert ends == {first: "error", second: "length"}
    assert engine.stats.num_blocks_held == 0


def _broken(*_: object) -> torch.Tensor:
    raise RuntimeError("injected failure")
