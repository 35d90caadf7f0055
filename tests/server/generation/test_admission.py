"""server/generation/admission.py: estimated waits, the shares of tenants, and reasons to accept nothing."""

import pytest

from engine.token_constraints import token_constraints
from engine.types import Request, SamplingParams
from server.engine_client.status import EngineStatus, Phase
from server.errors import ApiError
from server.generation.admission import TOKENS_PER_CHOICE, UNMEASURED_S, WINDOW_S, Admission, RetryEstimator
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import saying


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
    assert admission.max_choices_of_request == 14
    for request_id in range(14):
        assert admission.has_room(0, 1)
        admission.add(request_id, tenant=0, num_tokens=1)
    assert not admission.has_room(0, 1)
    assert admission.has_room(1, 1)
    assert admission.has_room(1, 16), "more choices than a share, from a key that has none waiting"


def test_ids_of_constraints_count_and_one_key_of_several_never_fills_the_queue_with_them() -> None:
    admission = Admission(FakeEngine(saying("a")), max_choices=100, max_tokens=64, num_tenants=2)
    packed = token_constraints(logit_bias=dict.fromkeys(range(20), 1.0), bad_words=[(1, 2)])
    params = SamplingParams(constraints=packed, stop_token_ids=(7, 8))
    admission.admit([Request(1, [5, 6], params)])
    assert admission.num_tokens == 2 + 22 + 2
    admission.admit([Request(2, [5] * 30, SamplingParams())])  # 56 of 64, the share of a key
    assert not admission.has_room(0, 1)
    assert admission.has_room(1, 1)
    admission.remove(1)
    assert admission.has_room(0, 1)


def a_request(request_id: int, num_tokens: int = 3) -> Request:
    return Request(request_id, [1] * num_tokens, SamplingParams())


def test_admitted_choices_count_until_they_are_removed() -> None:
    admission = Admission(FakeEngine(saying("a")), max_choices=4, max_tokens=5)
    admission.admit([a_request(1), a_request(2)])
    assert admission.num_tokens == 6 and not admission.has_room(0, 1)
    with pytest.raises(ApiError) as caught:
        admission.admit([a_request(3)])
    assert (caught.value.code, admission.num_tokens) == ("queue_full", 6)
    for request_id in (1, 1, 2):
        admission.remove(request_id)
    assert admission.num_tokens == 0 and admission.has_room(0, 1)


@pytest.mark.parametrize(
    ("phase", "exit_code", "code"),
    [
        ("loading", 1, "loading"),
        ("ready", 1, None),
        ("stuck", 1, "engine_dead"),
        ("restarting", 1, "engine_dead"),
        ("draining", 1, "draining"),
        ("dead", 0, "draining"),
        ("dead", 1, "engine_dead"),
    ],
)
def test_an_engine_that_is_not_ready_is_the_reason_to_refuse(phase: Phase, exit_code: int, code: str | None) -> None:
    error = Admission(EngineIn(phase, exit_code), max_choices=4).unavailable_reason()
    assert (error.code if error else None) == code


class EngineIn:
    """An engine with a fixed status."""

    num_waiting = 0

    def __init__(self, phase: Phase, exit_code: int) -> None:
        self.status = EngineStatus(phase, exit_code=exit_code)


def test_constraints_of_open_choices_are_bounded_until_their_generation_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.generation.admission.MAX_CONSTRAINT_IDS", 50)
    admission = Admission(FakeEngine(saying("a")), max_choices=100)
    params = SamplingParams(constraints=token_constraints(allowed_token_ids=range(20)))
    both = [Request(1, [5], params), Request(2, [5], params)]
    admission.admit(both)
    admission.remove(1)
    admission.remove(2)
    with pytest.raises(ApiError) as caught:
        admission.admit([Request(3, [5], params)])
    assert (caught.value.status, caught.value.code) == (429, "constraints_full")
    admission.admit([a_request(4)])
    admission.end(both)
    admission.admit([Request(3, [5], params)])


def test_smaller_bounds_hold_from_then_on() -> None:
    admission = Admission(FakeEngine(saying("a")), max_choices=100, num_tenants=2)
    params = SamplingParams(constraints=token_constraints(allowed_token_ids=range(20)))
    admission.add(0, tenant=0, num_tokens=10)
    assert admission.has_room(0, 1) and admission.has_room(1, 1)
    admission.resize(max_tokens=10, max_constraint_ids=30)
    assert not admission.has_room(0, 1) and not admission.has_room(1, 1)
    admission.resize(max_tokens=11, max_constraint_ids=30)
    assert not admission.has_room(0, 1) and admission.has_room(1, 1)  # one key may have 10 of 11
    admission.remove(0)
    admission.resize(max_tokens=100, max_constraint_ids=30)
    admission.admit([Request(1, [5], params)])
    with pytest.raises(ApiError) as caught:
        admission.admit([Request(2, [5], params)])
    assert caught.value.code == "constraints_full"
