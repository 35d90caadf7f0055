"""server/sandbox/job.py: limits that fit the machine."""

import pytest

from server.sandbox.job import limits_within

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("memory", "expected"),
    [(None, 224 * MIB), (64 * GIB, 224 * MIB), (2 * GIB, 128 * MIB), (GIB, 64 * MIB), (GIB // 2, 64 * MIB)],
)
def test_a_job_gets_a_share_of_the_memory(memory: int | None, expected: int) -> None:
    assert limits_within(memory).memory_bytes == expected
