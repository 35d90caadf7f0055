"""GET /experts and POST /experts/reset."""

import pytest

from engine.types import ExpertReport
from tests.support.servers.posted import an_engine
from tests.support.servers.serving import client_of, state_around

pytestmark = pytest.mark.anyio


async def test_experts_are_reported_since_the_start_and_over_a_window() -> None:
    async with client_of(state_around(an_engine())) as client:
        report = (await client.get("/experts")).json()
        (layer,) = report["layers"]
        assert (report["since"], report["window_s"], layer["layer"]) == (5.0, None, 0)
        assert layer["tokens"] == [0, 0, 9, 0, 0, 0, 0, 0] and layer["share"][2] == 1.0
        assert (layer["entropy"], layer["imbalance"]) == (0.0, 8.0)
        (top,) = layer["top_tokens"][2]
        assert (top["id"], top["count"]) == (7, 9) and isinstance(top["text"], str)
        recent = (await client.get("/experts?window=60")).json()
        assert (recent["window_s"], recent["layers"][0]["tokens"][2]) == (60.0, 1)
        empty = (await client.post("/experts/reset")).json()["layers"][0]
        assert (empty["share"], empty["entropy"], empty["imbalance"]) == ([0.0] * 8, 0, 0)


@pytest.mark.parametrize(("window", "seconds"), [("1", 1), ("1.0001", 2), ("3e0", 3), ("59.5", 60), ("60.0", 60)])
async def test_a_window_is_rounded_up_to_whole_seconds(window: str, seconds: int) -> None:
    engine = an_engine()
    asked: list[float | None] = []
    experts = engine.experts

    async def recorded(window_s: float | None, *, reset: bool = False) -> ExpertReport:
        asked.append(window_s)
        return await experts(window_s, reset=reset)

    engine.experts = recorded  # type: ignore[method-assign]
    async with client_of(state_around(engine)) as client:
        report = (await client.get("/experts", params={"window": window})).json()
    assert (asked, report["window_s"]) == ([seconds], seconds)


@pytest.mark.parametrize(
    ("window", "code"),
    [
        ("0", "decimal_below_min_value"),
        ("-1", "decimal_below_min_value"),
        ("61", "decimal_above_max_value"),
        ("nan", "invalid_type"),
        ("1e999", "decimal_above_max_value"),
        ("", "invalid_type"),
        ("minute", "invalid_type"),
    ],
)
async def test_a_window_is_one_to_sixty_seconds(window: str, code: str) -> None:
    async with client_of(state_around(an_engine())) as client:
        response = await client.get("/experts", params={"window": window})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "window", code)


async def test_a_misspelled_window_is_named() -> None:
    async with client_of(state_around(an_engine())) as client:
        response = await client.get("/experts", params={"windw": 60, "a b": 1})
        spelled = await client.get("/experts", params={"window": 60})
    assert response.headers["x-smoe-ignored-params"] == "?, windw"
    assert "x-smoe-ignored-params" not in spelled.headers


async def test_experts_are_a_503_while_the_engine_is_gone() -> None:
    engine = an_engine()
    engine.phase = "dead"
    async with client_of(state_around(engine)) as client:
        assert (await client.get("/experts")).status_code == 503


async def test_experts_need_a_key_where_there_is_one() -> None:
    async with client_of(state_around(an_engine()), api_keys=("key",)) as client:
        for headers, status in (({}, 401), ({"authorization": "Bearer key"}, 200)):
            assert (await client.get("/experts", headers=headers)).status_code == status
            assert (await client.post("/experts/reset", headers=headers)).status_code == status
