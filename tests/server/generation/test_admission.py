"""server/generation/admission.py: estimated waits, the shares of tenants, and reasons to accept nothing."""

from server.generation.admission import TOKENS_PER_CHOICE, UNMEASURED_S, WINDOW_S, Admission, RetryEstimator
from tests.support.fake_engine import FakeEngine
from tests.support.serving import saying


def test_the_estimated_wait_follows_the_measured_pace() -> None:
    now = [0.0]
    estimator = RetryEstimator(lambda: now[0])
    assert estimator.wait_s(1000) == UNMEASURED_S
    for _ in range(5):
        estimator.record_end()
        now[0] += 2.0
    assert estimator.wait_s(3) == 6.0
    now[0] += 10.0  # nothing has ended since: the pace drops
    assert estimator.wait_s(3) == 12.0
    now[0] += WINDOW_S
    assert estimator.wait_s(3) == UNMEASURED_S


def test_one_key_of_several_never_fills_the_queue_alone() -> None:
    admission = Admission(FakeEngine(saying("a")), max_choices=16, num_tenants=2)
    assert admission.max_tokens == 16 * TOKENS_PER_CHOICE
    for request_id in range(14):
        assert admission.has_room(0, 1)
        admission.add(request_id, tenant=0, num_tokens=1)
    assert not admission.has_room(0, 1)
    assert admission.has_room(1, 1)
    assert admission.has_room(1, 16), "more choices than a share, from a key that has none waiting"
