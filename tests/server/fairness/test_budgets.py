"""server/fairness/budgets.py: the table and its sum."""

import pytest

from server.fairness import budgets as module
from server.fairness.budgets import (
    AMPLE_REQUEST_MEMORY,
    LEAST_REQUEST_MEMORY,
    MAX_REQUEST_MEMORY,
    MIN_REQUEST_MEMORY,
    PROCESS_BYTES,
    budgets,
    request_memory_bytes,
    server_demand,
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


def at_share(share: float, **settings: object) -> dict[str, int]:
    return {budget.name: budget.num_bytes for budget in budgets(Settings(**settings), share)}  # type: ignore[arg-type]


def test_where_memory_is_short_every_row_that_no_flag_sets_shrinks_to_its_least_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "memory_limit_bytes", lambda: 8 * GIB)
    usual, ample, least = at_share(1.0), at_share(0.5), at_share(0.0)
    for name in ("request bodies", "grammars", "replies", "waiting tokens", "constraints"):
        assert least[name] < ample[name] < usual[name]
        assert ample[name] < at_share(0.75)[name] < usual[name]
    for name in ("choices", "sandbox", "frames"):
        assert least[name] == ample[name] == usual[name]
    assert ample["request bodies"] == ample["replies"] == AMPLE_REQUEST_MEMORY
    assert least["request bodies"] == least["replies"] == LEAST_REQUEST_MEMORY
    assert at_share(1.0) == {budget.name: budget.num_bytes for budget in budgets(Settings())}


def test_rows_that_flags_set_never_shrink() -> None:
    flags = {"request_memory_bytes": 123 << 20, "max_num_queued_tokens": 400_000, "max_num_queued_reqs": 77}
    usual, least = at_share(1.0, **flags), at_share(0.0, **flags)
    for name in ("request bodies", "replies", "waiting tokens", "choices"):
        assert least[name] == usual[name]
    assert least["constraints"] < usual["constraints"]
    small = {"max_num_queued_reqs": 3}
    assert at_share(0.0, **small)["waiting tokens"] == at_share(1.0, **small)["waiting tokens"]  # below the least size


def test_the_demand_of_the_server_is_the_sum_of_processes_and_table() -> None:
    demand = server_demand(Settings())
    assert demand.usual_bytes == PROCESS_BYTES + total_bytes(budgets(Settings()))
    assert demand.ample_bytes == PROCESS_BYTES + total_bytes(budgets(Settings(), 0.5)) < demand.usual_bytes
    assert demand.least_bytes == PROCESS_BYTES + total_bytes(budgets(Settings(), 0.0)) < demand.ample_bytes


def test_the_summary_says_that_it_was_reduced() -> None:
    assert "reduced" not in summary(budgets(Settings()))
    line = summary(budgets(Settings(), 0.0), 0.0)
    assert "requests (reduced to fit the memory limit): request bodies 32.0 MiB" in line and "\n" not in line
