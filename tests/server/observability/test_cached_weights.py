"""server/observability/cached_weights.py: the bytes of a pack in memory, while the system can tell them."""

import asyncio
from pathlib import Path

import pytest

from server.observability import cached_weights
from server.observability.cached_weights import CachedWeightsProbe
from tests.support.paths import DEMO


def test_each_measurement_is_reported_until_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([5, 7, None])
    monkeypatch.setattr(cached_weights, "cached_weight_bytes", lambda model: next(measured))
    monkeypatch.setattr(cached_weights, "INTERVAL_S", 0.0)
    reported: list[int] = []
    asyncio.run(CachedWeightsProbe(Path("m"), reported.append).run())
    assert reported == [5, 7]


def test_what_is_no_pack_is_not_measured() -> None:
    asyncio.run(CachedWeightsProbe(DEMO, lambda num_bytes: pytest.fail("reported")).run())
