"""server/observability/memory_pressure.py: levels are derived from the limit and from the memory left after loading."""

import pytest

from engine.capacity.machine import host_resources
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


def test_without_a_measure_of_its_own_the_monitor_reads_the_cgroups_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes hold little, the kernel's own memory fills the cgroup."""
    monkeypatch.setattr(host_resources, "process_tree_bytes", lambda proc: 10)
    room = [900]
    monkeypatch.setattr(host_resources, "cgroup_headroom_bytes", lambda root: room[0])
    monitor = MemoryMonitor(1000)
    monitor.settle(0)
    levels = []
    for room[0] in (900, 60, 40, 900):
        monitor.measure()
        levels.append(monitor.level)
    assert levels == ["normal", "high", "critical", "normal"]
