"""server/sandbox/job.py: limits that fit the machine."""

import pytest

from server.sandbox.job import limits_within, num_workers_within

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("memory", "expected"),
    [(None, 224 * MIB), (64 * GIB, 224 * MIB), (2 * GIB, 128 * MIB), (GIB, 64 * MIB), (GIB // 2, 64 * MIB)],
)
def test_a_job_gets_a_share_of_the_memory(memory: int | None, expected: int) -> None:
    assert limits_within(memory).memory_bytes == expected


@pytest.mark.parametrize(
    ("memory", "expected"), [(None, 3), (64 * GIB, 3), (GIB, 3), (GIB * 3 // 4, 2), (GIB * 6 // 10, 1), (GIB // 8, 1)]
)
def test_the_jobs_that_run_at_once_take_at_most_three_16ths_of_a_small_memory(
    memory: int | None, expected: int
) -> None:
    assert num_workers_within(memory) == expected
    if memory is not None and expected > 1:
        assert expected * limits_within(memory).memory_bytes <= 3 * memory // 16
