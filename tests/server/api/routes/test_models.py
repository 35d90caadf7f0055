"""GET /v1/models."""

from dataclasses import replace

import pytest

from server.generation.generation_defaults import GenerationDefaults
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import MODEL, check_error, client_of, saying, state_around

pytestmark = pytest.mark.anyio


async def test_models_are_listed_under_each_name_and_found_only_by_it() -> None:
    async with client_of(state_around(FakeEngine(saying("a")))) as client:
        listed = (await client.get("/v1/models")).json()
        assert [entry["id"] for entry in listed["data"]] == [MODEL, "alias"]
        assert {entry["root"] for entry in listed["data"]} == {MODEL}
        assert listed["data"][0]["max_model_len"] == 256
        assert (await client.get(f"/v1/models/{MODEL}")).json() == listed["data"][0]
        for name in ("test", "TEST/model", "../../etc/passwd", "test/model/", "a@b"):
            check_error(await client.get(f"/v1/models/{name.replace('/', '%2F')}"), 404, "model_not_found", "model")


async def test_a_model_names_the_values_of_sampling_fields_that_a_request_omits() -> None:
    state = state_around(FakeEngine(saying("a")))
    assert state.texts is not None
    state.texts = replace(state.texts, defaults=GenerationDefaults(temperature=0.7, top_k=50))
    async with client_of(state) as client:
        [entry, _] = (await client.get("/v1/models")).json()["data"]
        named = {"temperature": 0.7, "top_p": 1.0, "top_k": 50, "min_p": 0.0, "repetition_penalty": 1.0}
        assert entry["generation_defaults"] == named
        state.texts = None  # as while a model loads
        [entry, _] = (await client.get("/v1/models")).json()["data"]
        assert entry["generation_defaults"] is None
