"""server/bench/planned_load.py: a load shared out among servers."""

import pytest

from engine.planning.replicas import ALONE
from server.bench.planned_load import ALONE_S, MIN_REQUESTS, NUM_ALONE, DrawnLoad, TracedLoad
from server.bench.trace_file import TracedRequest
from server.bench.workload import Range

TRACE = [TracedRequest(10.0 + 2 * number, 100 + number, 1 + number) for number in range(41)]  # 0.5 per second


def test_a_trace_is_dealt_out_in_turns() -> None:
    shares = [TracedLoad(TRACE).share(count) for count in (1, 2, 3, 100)]
    assert [len(share) for share in shares] == [41, 21, 14, 1]
    assert [(a.due_s, a.num_prompt_tokens, a.num_output_tokens) for a in shares[2][:3]] == [
        (10.0, 100, 1),
        (16.0, 103, 4),
        (22.0, 106, 7),
    ]


def test_a_trace_may_be_sped_up_and_keeps_its_lengths() -> None:
    load = TracedLoad(TRACE, rate=5.0).share(1)
    assert load[-1].due_s - load[0].due_s == pytest.approx(8.0)
    assert [a.num_prompt_tokens for a in load] == [request.num_prompt_tokens for request in TRACE]


def test_requests_alone_never_meet_and_are_of_all_of_the_trace() -> None:
    alone = TracedLoad(TRACE).share(ALONE)
    assert [a.due_s for a in alone[:3]] == [0.0, ALONE_S, 2 * ALONE_S]
    assert NUM_ALONE <= len(alone) <= 2 * NUM_ALONE and alone[-1].num_prompt_tokens == 140


def test_one_request_is_a_trace_too() -> None:
    assert len(TracedLoad(TRACE[:1], rate=3.0).share(1)) == 1


def test_a_drawn_load_has_its_rate_and_the_same_lengths_for_each_number_of_servers() -> None:
    load = DrawnLoad(100.0, Range(10, 20), Range(5, 5), ttft_s=1.0)
    one, ten = load.share(1), load.share(10)
    assert len(one) / one[-1].due_s == pytest.approx(100.0, rel=0.1)
    assert len(ten) / ten[-1].due_s == pytest.approx(10.0, rel=0.2)
    assert [a.num_prompt_tokens for a in one[:MIN_REQUESTS]] == [a.num_prompt_tokens for a in ten[:MIN_REQUESTS]]
    assert len(load.share(ALONE)) == NUM_ALONE
