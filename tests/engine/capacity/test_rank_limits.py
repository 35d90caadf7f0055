"""engine/capacity/rank_limits.py: more threads than cores."""

import pytest

from engine.capacity import rank_limits
from engine.config import EngineConfig


@pytest.mark.parametrize(
    ("settings", "device", "warning"),
    [
        ({}, "cpu", None),
        ({"threads": 2}, "cpu", None),
        ({"threads": 3}, "cpu", "--threads 3 on 2 cores: steps are much slower than with --threads 2"),
        ({"threads": 3}, "cuda", None),
        ({"tensor_parallel_size": 2}, "cpu", None),
        ({"tensor_parallel_size": 2, "threads": 2}, "cpu", "2 ranks of 2 threads share 2 cores"),
        ({"tensor_parallel_size": 4}, "cpu", "4 ranks of 1 threads share 2 cores"),
    ],
)
def test_more_threads_than_cores_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], device: str, warning: str | None
) -> None:
    monkeypatch.setattr(rank_limits, "num_cores", lambda: 2)
    lines = rank_limits.rank_warnings(EngineConfig(model="m", **settings), device)  # type: ignore[arg-type]
    assert len(lines) == (warning is not None)
    assert warning is None or lines[0].startswith(warning)
