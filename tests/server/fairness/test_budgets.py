"""server/fairness/budgets.py: the table and its sum."""

import pytest

from server.fairness import budgets as module
from server.fairness.budgets import (
    MAX_REQUEST_MEMORY,
    MIN_REQUEST_MEMORY,
    PROCESS_BYTES,
    budgets,
    request_memory_bytes,
    shortage,
    summary,
    total_bytes,
)
from server.settings.settings import Settings

GIB = 1 << 30


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(GIB // 8, MIN_REQUEST_MEMORY), (2 * GIB, GIB // 4), (64 * GIB, MAX_REQUEST_MEMORY), (None, MAX_REQUEST_MEMORY)],
)
def test_the_memory_for_requests_follows_from_the_limit(
    limit: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "memory_limit_bytes", lambda: limit)
    assert request_memory_bytes(Settings()) == expected
    assert request_memory_bytes(Settings(request_memory_bytes="5MiB")) == 5 << 20


def test_every_flag_of_the_table_changes_its_rows() -> None:
    def rows(settings: Settings, flag: str) -> int:
        return sum(budget.num_bytes for budget in budgets(settings) if budget.set_by == flag)

    base = Settings(request_memory_bytes=1 << 26)
    for flag, settings in {
        "--request-memory-bytes": Settings(request_memory_bytes=1 << 25),
        "--max-num-queued-tokens": Settings(request_memory_bytes=1 << 26, max_num_queued_tokens=1000),
        "--max-num-queued-reqs": Settings(request_memory_bytes=1 << 26, max_num_queued_reqs=10),
    }.items():
        assert rows(settings, flag) < rows(base, flag)
        assert total_bytes(budgets(settings)) < total_bytes(budgets(base))


def test_a_sum_above_the_limit_is_named_with_the_flags_that_lower_it() -> None:
    table = budgets(Settings(request_memory_bytes=1 << 26))
    limit = GIB + PROCESS_BYTES + total_bytes(table)
    assert shortage(table, GIB, limit) is None
    assert shortage(table, GIB, None) is None
    message = shortage(table, GIB, limit - 1)
    assert message and "\n" not in message
    for flag in ("--kv-cache-memory-bytes", "--request-memory-bytes", "--max-num-queued-tokens"):
        assert message.count(flag) == 1
    assert "request bodies 64.0 MiB" in summary(table)
