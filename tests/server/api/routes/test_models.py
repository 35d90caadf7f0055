"""GET /v1/models."""

import pytest

from tests.support.fake_engine import FakeEngine
from tests.support.serving import MODEL, check_error, client_of, saying, state_around

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
