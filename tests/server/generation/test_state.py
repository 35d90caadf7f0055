"""server/generation/state.py: seeds, model names, and the server before its model is loaded."""

import msgspec
import pytest

from server.api.routes.models import model_entry
from server.errors import ApiError
from server.generation.state import LoraOptions, seed_source
from server.schemas import CompletionRequest, validate
from tests.support.servers.fake_engine import READY, FakeEngine
from tests.support.servers.serving import MODEL, outcomes, saying, state_around


def test_seeds_have_63_bits_and_a_fixed_seed_repeats_the_sequence() -> None:
    first, again, other = ([draw() for _ in range(20)] for draw in map(seed_source, (7, 7, None)))
    assert first == again != other
    assert all(0 <= seed < 2**63 for seed in [*first, *other])


def test_only_the_served_names_are_models() -> None:
    state = state_around(FakeEngine(saying("a")))
    assert state.served_name(MODEL) == MODEL
    assert state.served_name(None) == MODEL
    assert state.served_name("alias") == "alias"
    with pytest.raises(ApiError) as caught:
        state.served_name(MODEL.upper())
    assert caught.value.status == 404


def test_adapters_are_served_under_their_names_unless_the_model_has_the_name() -> None:
    engine = FakeEngine(saying("a"))
    state = state_around(engine)
    state.lora = LoraOptions(("sql", "alias"))
    engine.ready = None
    assert state.all_names == (MODEL, "alias", "sql")
    engine.ready = msgspec.structs.replace(READY, adapters={"sql": "0a1b", "alias": "0c"})
    assert state.all_names == (MODEL, "alias", "sql")
    assert state.served_name("sql") == "sql"
    assert {name: state.adapter_of(name) for name in ("sql", "alias", MODEL, None)} == {
        "sql": "0a1b", "alias": "", MODEL: "", None: "",
    }  # fmt: skip


def test_an_adapter_is_as_old_as_its_files_in_the_engine() -> None:
    engine = FakeEngine(saying("a"))
    state = state_around(engine)
    for now_s, digests in ((2, {"sql": "0a", "old": "0b"}), (3, {"sql": "0a", "old": "0c"}), (4, {"old": "0c"})):
        engine.ready = msgspec.structs.replace(READY, adapters=digests)
        state.date_adapters(now_s)
        if now_s == 3:
            assert [model_entry(state, name)["created"] for name in (MODEL, "sql", "old")] == [1, 2, 3]
    assert state.adapters_loaded_s == {("old", "0c"): 3}


def test_without_a_model_or_its_texts_nothing_is_served() -> None:
    state = state_around(FakeEngine(saying("a")))
    assert state.serving() == (READY, state.texts)
    state.texts = None
    with pytest.raises(ApiError) as caught:
        state.serving()
    assert (caught.value.status, caught.value.code) == (503, "loading")


@pytest.mark.anyio
async def test_grammars_are_checked_with_the_end_tokens_of_the_engine() -> None:
    texts = state_around(FakeEngine(saying("a"))).texts
    assert texts is not None
    fields = {"model": MODEL, "prompt": "x", "regex": "a", "allowed_token_ids": [100, 7]}
    request = validate(CompletionRequest, fields)
    with pytest.raises(ApiError, match="lacks the end token"):
        await texts.grammars.compile(request)
    ready = msgspec.structs.replace(READY, eos_token_ids=[2, 7])
    assert await texts.for_engine(ready).grammars.compile(request) is not None


@pytest.mark.anyio
async def test_a_full_queue_is_refused_and_counted() -> None:
    engine = FakeEngine(saying("a"))
    state = state_around(engine, max_num_queued=2)
    await state.check_queue(0)
    engine.num_waiting = 2
    with pytest.raises(ApiError) as caught:
        await state.check_queue(0)
    assert caught.value.code == "queue_full"
    assert outcomes(state) == {"received": 1, "rejected": 1}
