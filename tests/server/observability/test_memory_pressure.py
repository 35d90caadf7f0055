"""server/observability/memory_pressure.py: levels are derived from the limit and from the memory left after loading."""

import pytest

from server.observability.memory_pressure import MemoryMonitor


@pytest.mark.parametrize(
    ("used", "static", "level"),
    [
        (899, 0, "normal"),
        (901, 0, "high"),
        (951, 0, "critical"),
        (960, 960, "normal"),  # weights that nearly fill the memory are no pressure
        (981, 960, "high"),
        (991, 960, "critical"),
        (1500, 1500, "normal"),
    ],
)
def test_levels_follow_from_the_limit_or_from_the_memory_left_after_loading(used: int, static: int, level: str) -> None:
    used_bytes = [min(used, static)]
    monitor = MemoryMonitor(1000, lambda: used_bytes[0])
    monitor.settle(static)
    used_bytes[0] = used
    monitor.measure()
    assert monitor.level == level


def test_each_measurement_at_critical_is_reported() -> None:
    used, reports = [0], []
    monitor = MemoryMonitor(1000, lambda: used[0], on_critical=lambda: reports.append(used[0]))
    monitor.settle(0)
    for used[0] in (940, 960, 990, 10):
        monitor.measure()
    assert reports == [960, 990]
