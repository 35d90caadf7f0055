"""Roofline measurements with tiny amounts of work, whose figures mean nothing."""

import pytest

from model.bench import roofline


def shrink_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower buffer, matrix and round sizes of model.bench.roofline."""
    monkeypatch.setattr(roofline, "BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr(roofline, "MIN_ROUND_S", 0.001)
    monkeypatch.setattr(roofline, "PEAK_ROUNDS", 64)
    monkeypatch.setitem(roofline.MATMUL_SIZE, "cpu", 64)
