"""server/generation/throughput.py: the wait that is named is what was measured."""

from server.generation.throughput import UNMEASURED_S, WINDOW_S, RetryEstimator


def test_the_wait_is_what_so_many_ends_took() -> None:
    now = [0.0]
    throughput = RetryEstimator(lambda: now[0])
    assert throughput.wait_s(1000) == UNMEASURED_S
    for _ in range(5):
        throughput.ended()
        now[0] += 2.0
    assert throughput.wait_s(3) == 6.0
    now[0] += 10.0  # nothing ended meanwhile: it has become slower
    assert throughput.wait_s(3) == 12.0
    now[0] += WINDOW_S
    assert throughput.wait_s(3) == UNMEASURED_S
