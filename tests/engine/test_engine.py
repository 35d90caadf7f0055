"""The engine ends a request that it cannot queue or sample, and itself when its bookkeeping is wrong."""

import gc
import random
from pathlib import Path
from typing import Any

import pytest

from engine.errors import FatalEngineError
from engine.types import Request
from smoe import SamplingParams
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.isolated import VOCAB, load, random_work, same_bits, solo


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain")
    save_random_checkpoint(Shape(seed=1), path)
    return path


def test_wrong_bookkeeping_ends_the_engine(plain: Path) -> None:
    engine = load(plain)
    request_id = engine.add([5, 6], SamplingParams(max_tokens=3, ignore_eos=True))
    engine.step()
    engine._engine.scheduler.block_manager.pool.decref(
        engine._engine.scheduler.requests.unfinished[request_id].block_table
    )
    with pytest.raises(FatalEngineError, match="bookkeeping"):
        engine.step()


@pytest.mark.parametrize("prompt", [[5, VOCAB], [-1], [2**40], [5, "6"], [5, None]])
def test_an_invalid_token_id_ends_its_own_request(plain: Path, prompt: list[Any]) -> None:
    engine = load(plain)
    params = SamplingParams(max_tokens=4, ignore_eos=True, temperature=0.0)
    good, bad = engine.add([5, 6], params), engine.add(prompt, params)
    ends: dict[int, str | None] = {}
    while engine.has_work():
        ends |= {output.request_id: output.finish_reason for output in engine.step() if output.finish_reason}
    assert ends == {bad: "error", good: "length"}


@pytest.mark.parametrize("prediction", [[5, VOCAB], [-1]])
def test_an_invalid_token_id_of_a_prediction_ends_its_own_request(plain: Path, prediction: list[int]) -> None:
    engine = load(plain)
    request = Request(7, [5, 6], SamplingParams(max_tokens=4), prediction_token_ids=prediction)
    engine._engine.add(request)
    [output] = engine.step()
    assert output.error is not None and "prediction" in output.error


@pytest.mark.parametrize("fields", [{"top_k": 2**70}, {"stop_token_ids": ("x",), "min_tokens": 1}, {"seed": "x"}])
def test_a_parameter_out_of_range_ends_its_own_request(plain: Path, fields: dict[str, Any]) -> None:
    """The server rejects these; users of LocalEngine can still pass them."""
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


def test_expert_counts_that_fail_stop_the_counting_and_nothing_else(plain: Path) -> None:
    engine = load(plain)
    params = SamplingParams(max_tokens=4, ignore_eos=True, temperature=0.0)
    [alone] = solo(engine, [([5, 6], params)])
    for broken in ("record", "pop_new_counts"):
        counts = engine._engine.experts._stats
        if counts is not None:
            setattr(counts, broken, lambda *_: 1 / 0)
            counts.is_due = lambda _: True  # type: ignore[method-assign]
        [again] = solo(engine, [([5, 6], params)])
        assert same_bits(again, alone)
    assert engine.experts().layers == []


def test_a_request_that_cannot_be_queued_ends_with_an_error(plain: Path) -> None:
    engine = load(plain)
    engine._engine.add(Request(7, [5], SamplingParams(max_tokens=4), expert_mask=[[None]]))  # type: ignore[list-item]
    engine._engine.add(Request(8, [5], SamplingParams(max_tokens=4), priority=None))  # type: ignore[arg-type]
    outputs = engine._engine.step().outputs
    assert {7} <= {output.request_id for output in outputs if output.finish_reason == "error"}


def test_requests_leave_no_cycles_for_the_garbage_collector(plain: Path) -> None:
    """The engine process makes full collections rare, so that what only they free must not pile up."""
    engine = load(plain)
    work = random_work(random.Random(3), 30)
    solo(engine, work[:5])  # what is made once
    for _ in range(2):  # engines of earlier tests: finalizers that the first call runs hold their libraries until then
        gc.collect()
    gc.disable()
    try:
        solo(engine, work)
        engine.abort(engine.add([5, 6], SamplingParams(max_tokens=4)))
        assert gc.collect() == 0
    finally:
        gc.enable()
