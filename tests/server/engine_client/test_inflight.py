"""Open requests without an engine process: which are kept, suspected and sent when. A scripted engine crashes."""

import asyncio
import random
from collections.abc import Iterator

import pytest

from engine.token_constraints import token_constraints
from engine.types import Request, RequestOutput, SamplingParams
from server.engine_client.inflight import CULPRIT_ERROR, DEADLINE_GRACE_S, CrashReport, InFlightRequests
from server.engine_client.output_collector import OutputCollector

pytestmark = pytest.mark.anyio


def request(request_id: int, **fields: object) -> Request:
    return Request(request_id, [5], SamplingParams(), **fields)  # type: ignore[arg-type]


def ids(requests: list[Request]) -> list[int]:
    return [request.request_id for request in requests]


def first_output(request_id: int) -> RequestOutput:
    return RequestOutput(request_id, [7])


def closing_output(request_id: int) -> RequestOutput:
    return RequestOutput(request_id, [8], finish_reason="length")


def in_flight_with(*requests: Request) -> tuple[InFlightRequests, list[OutputCollector]]:
    """Requests that were sent, each with a collector of its own."""
    in_flight, collectors = InFlightRequests(), []
    for one in requests:
        collectors.append(OutputCollector())
        in_flight.add([one], collectors[-1])
    assert in_flight.pop_sendable() == list(requests)
    return in_flight, collectors


def suspects(*requests: Request) -> tuple[InFlightRequests, list[OutputCollector]]:
    """Requests that a step had begun when the engine crashed, each with a collector. The first is sent again, alone."""
    in_flight, collectors = in_flight_with(*requests)
    in_flight.started(ids(list(requests)))
    in_flight.engine_died()
    assert ids(in_flight.pop_sendable()) == ids(list(requests[:1]))
    return in_flight, collectors


async def test_what_has_given_an_output_is_lost_and_never_sent_again() -> None:
    in_flight, collectors = in_flight_with(request(1), request(2))
    assert in_flight.take(first_output(1)) is collectors[0]
    crash = in_flight.engine_died()
    assert crash == CrashReport([collectors[0]], None, num_lost=1, num_kept=1)
    assert ids(in_flight.pop_sendable()) == [2]


async def test_choices_that_share_a_collector_are_lost_together() -> None:
    in_flight, collector = InFlightRequests(), OutputCollector()
    in_flight.add([request(1), request(2)], collector)
    in_flight.pop_sendable()
    in_flight.take(first_output(2))
    assert in_flight.engine_died().lost == [collector]
    assert len(in_flight) == 0 and in_flight.pop_sendable() == []


async def test_what_only_queued_is_sent_again_at_once_and_in_order() -> None:
    in_flight, _ = in_flight_with(*map(request, range(1, 6)))
    assert in_flight.engine_died().num_kept == 5
    assert ids(in_flight.pop_sendable()) == [1, 2, 3, 4, 5]


async def test_suspects_are_sent_one_at_a_time_and_the_others_wait_for_them() -> None:
    in_flight, _ = in_flight_with(*map(request, range(1, 6)))
    in_flight.started([2, 4])
    in_flight.engine_died()
    assert ids(in_flight.pop_sendable()) == [2]
    assert in_flight.pop_sendable() == []
    in_flight.started([2])
    in_flight.take(first_output(2))
    assert ids(in_flight.pop_sendable()) == [4]
    in_flight.add([request(6)], OutputCollector())
    assert in_flight.pop_sendable() == []
    in_flight.take(closing_output(4))
    assert ids(in_flight.pop_sendable()) == [1, 3, 5, 6]


async def test_a_grammar_may_have_crashed_the_engine_while_its_request_still_queued() -> None:
    in_flight, _ = in_flight_with(request(1), request(2, grammar="{}"))
    in_flight.engine_died()
    assert ids(in_flight.pop_sendable()) == [2]


async def test_a_suspect_that_crashes_the_engine_again_alone_gets_an_error_and_is_the_only_one() -> None:
    in_flight, collectors = suspects(*map(request, range(1, 4)))
    in_flight.started([1])
    crash = in_flight.engine_died()
    assert crash.culprit == (collectors[0], RequestOutput(1, finish_reason="error", error=CULPRIT_ERROR))
    assert (crash.lost, crash.num_kept) == ([], 2)
    assert ids(in_flight.pop_sendable()) == [2]


async def test_a_suspect_that_was_not_alone_is_probed_again() -> None:
    """Either request may be the culprit. The one with an output is lost in any case."""
    in_flight, collectors = suspects(request(1), request(2))
    in_flight.take(first_output(1))
    assert ids(in_flight.pop_sendable()) == [2]
    in_flight.started([2])
    crash = in_flight.engine_died()
    assert (crash.lost, crash.culprit) == ([collectors[0]], None)
    assert ids(in_flight.pop_sendable()) == [2]


async def test_a_suspect_that_was_not_started_is_no_culprit() -> None:
    in_flight, _ = suspects(request(1))
    assert in_flight.engine_died().culprit is None
    assert ids(in_flight.pop_sendable()) == [1]


async def test_an_aborted_suspect_makes_room_for_the_next_once_the_engine_has_confirmed_the_abort() -> None:
    in_flight, _ = suspects(request(1), request(2))
    assert in_flight.abort([1, 99]) == [1]  # the engine has it
    in_flight.add([request(3)], OutputCollector())
    in_flight.confirm_aborts([])  # a step that began before the abort was read
    assert in_flight.take(first_output(1)) is None  # an output of that step
    assert len(in_flight) == 2 and in_flight.pop_sendable() == []
    in_flight.confirm_aborts([99, 1])
    assert ids(in_flight.pop_sendable()) == [2]
    assert in_flight.abort([2, 2]) == [2]
    in_flight.confirm_aborts([2])
    assert ids(in_flight.pop_sendable()) == [3]


@pytest.mark.parametrize("grammar", [None, "{}"])
async def test_nobody_is_blamed_for_the_crash_of_a_suspect_that_was_aborted(grammar: str | None) -> None:
    in_flight, _ = suspects(request(1), request(2, grammar=grammar))
    in_flight.abort([1])
    in_flight.started([1])  # the message was under way
    assert in_flight.pop_sendable() == []
    assert in_flight.engine_died() == CrashReport([], None, num_lost=0, num_kept=1, culprit_left=True)
    assert ids(in_flight.pop_sendable()) == [2]
    in_flight.started([2])
    crash = in_flight.engine_died()
    assert crash.culprit is not None and crash.culprit[1].request_id == 2 and not crash.culprit_left


async def test_nobody_is_blamed_while_the_engine_may_compute_an_aborted_request_that_had_an_output() -> None:
    """Request 1 passed its trial and runs beside the next suspect when its client leaves."""
    in_flight, _ = suspects(request(1), request(2))
    in_flight.take(first_output(1))
    assert ids(in_flight.pop_sendable()) == [2]
    in_flight.started([2])
    assert in_flight.abort([1]) == [1]
    crash = in_flight.engine_died()
    assert (crash.culprit, crash.culprit_left) == (None, False)
    assert ids(in_flight.pop_sendable()) == [2]


async def test_a_suspect_that_was_aborted_before_it_was_sent_needs_no_confirmation() -> None:
    in_flight, _ = in_flight_with(request(1), request(2))
    in_flight.started([1, 2])
    in_flight.engine_died()
    assert in_flight.abort([1]) == []
    assert ids(in_flight.pop_sendable()) == [2]


async def test_deadlines_count_while_there_is_no_engine() -> None:
    in_flight = InFlightRequests()
    waits, whole, patient = OutputCollector(), OutputCollector(), OutputCollector()
    in_flight.add([request(1, queue_deadline_s=10.0)], waits)
    in_flight.add([request(2, deadline_s=20.0, queue_deadline_s=90.0)], whole)
    in_flight.add([request(3)], patient)
    assert in_flight.expire(10.0) == ([], [])
    assert in_flight.expire(10.0 + DEADLINE_GRACE_S) == (
        [(waits, RequestOutput(1, finish_reason="queue_timeout"))],
        [],
    )
    assert in_flight.expire(20.0 + DEADLINE_GRACE_S) == (
        [(whole, RequestOutput(2, finish_reason="timeout"))],
        [],
    )
    assert len(in_flight) == 1


async def test_after_the_start_only_the_whole_deadline_counts_and_the_engine_gets_an_abort() -> None:
    in_flight, [collector] = in_flight_with(request(1, queue_deadline_s=10.0, deadline_s=20.0))
    in_flight.started([1])
    assert in_flight.expire(15.0) == ([], [])
    in_flight.take(first_output(1))
    assert in_flight.expire(30.0) == ([(collector, RequestOutput(1, finish_reason="timeout"))], [1])


class Engine:
    """Runs up to `max_running` requests in order and gives each two outputs. Reads its messages in some steps only.

    Crashes in one of the steps with one of `culprits`, which give no output, or with one of `late_culprits` after its
    first output. It may crash while a culprit with a grammar queues.
    """

    def __init__(self, chance: random.Random, culprits: set[int], late_culprits: set[int], max_running: int) -> None:
        self.inbox: list[tuple[bool, Request]] = []  # in order; True: add it, False: abort it
        self.queue: list[Request] = []
        self.running: dict[int, int] = {}
        self.chance, self.culprits, self.late_culprits, self.max_running = chance, culprits, late_culprits, max_running

    def step(self, in_flight: InFlightRequests) -> Iterator[RequestOutput]:
        """Yield the outputs of one step, then confirm the aborts. Raises RuntimeError for a crash."""
        aborted = self.read() if self.chance.random() < 0.5 else []
        if any(one.grammar and one.request_id in self.culprits and self.chance.random() < 0.3 for one in self.queue):
            raise RuntimeError
        while self.queue and len(self.running) < self.max_running:
            request_id = self.queue.pop(0).request_id
            self.running[request_id] = 0
            in_flight.started([request_id])
        late = any(n for id_, n in self.running.items() if id_ in self.late_culprits)
        if (late or self.running.keys() & self.culprits) and self.chance.random() < 0.5:
            raise RuntimeError
        for request_id in list(self.running):
            if request_id not in self.culprits and self.chance.random() < 0.7:
                self.running[request_id] += 1
                is_last = self.running[request_id] == 2
                if is_last:
                    del self.running[request_id]
                yield closing_output(request_id) if is_last else first_output(request_id)
        in_flight.confirm_aborts(aborted)

    def read(self) -> list[int]:
        """Carry out the messages and return the ids of the aborts."""
        inbox, self.inbox = self.inbox, []
        for is_new, one in inbox:
            if is_new:
                self.queue.append(one)
            else:
                self.queue = [other for other in self.queue if other.request_id != one.request_id]
                self.running.pop(one.request_id, None)
        return [one.request_id for is_new, one in inbox if not is_new]


@pytest.mark.parametrize("seed", range(10))
async def test_under_any_crashes_every_request_ends_once_and_only_culprits_are_blamed(seed: int, scale: int) -> None:
    for number in range(40 * scale):
        await crashes(random.Random(f"{seed} {number}"))


async def crashes(chance: random.Random) -> None:
    """Run culprits of both kinds among other requests, with aborts and late arrivals."""
    in_flight, everybody = InFlightRequests(), list(range(1, 31))
    culprits = {request_id for request_id in everybody if chance.random() < 0.1}
    late = {request_id for request_id in everybody if chance.random() < 0.1} - culprits
    owner: dict[int, OutputCollector] = {}
    ends: dict[int, str] = {}
    given: dict[int, int] = dict.fromkeys(everybody, 0)
    arriving = list(everybody)
    engine = Engine(chance, culprits, late, max_running=chance.randint(1, 8))
    for _ in range(3000):
        if arriving and chance.random() < 0.5:
            collector, request_id = OutputCollector(), arriving.pop(0)
            owner[request_id] = collector
            in_flight.add([request(request_id, grammar=chance.choice((None, "{}")))], collector)
        for one in in_flight.pop_sendable():
            assert given[one.request_id] == 0, "sent again though an output was given"
            engine.inbox.append((True, one))
        leaving = chance.choice(([], [], [], list(owner), list(engine.running)))
        if open_ids := [id_ for id_ in leaving if id_ not in ends and chance.random() < 0.1]:
            engine.inbox += [(False, request(id_)) for id_ in in_flight.abort(open_ids)]
            ends |= dict.fromkeys(open_ids, "abort")
        try:
            for output in engine.step(in_flight):
                taken = in_flight.take(output)
                if ends.get(output.request_id) == "abort":
                    assert taken is None
                    continue
                assert taken is owner[output.request_id]
                given[output.request_id] += 1
                if output.finish_reason is not None:
                    assert output.request_id not in ends
                    ends[output.request_id] = "length"
        except RuntimeError:
            crash = in_flight.engine_died()
            lost = {id_: "lost" for id_, collector in owner.items() if collector in crash.lost}
            blamed = {} if crash.culprit is None else {crash.culprit[1].request_id: "blamed"}
            assert not (lost | blamed).keys() & ends.keys()
            assert blamed.keys() <= culprits and all(given[id_] == 1 for id_ in lost)
            ends |= lost | blamed
            engine.inbox, engine.queue, engine.running = [], [], {}
        if not arriving and len(ends) == len(everybody):
            break
    engine.culprits = engine.late_culprits = set()
    for _ in range(30):  # the last aborts are confirmed
        list(engine.step(in_flight))
    assert len(ends) == len(everybody), f"without an end: {set(everybody) - set(ends)}"
    assert len(in_flight) == 0 and in_flight.pop_sendable() == []
    assert {id_ for id_ in culprits if ends[id_] not in ("blamed", "abort")} == set()
    await asyncio.sleep(0)


async def test_requests_are_popped_in_order_in_parts_of_bounded_size() -> None:
    in_flight, collector = InFlightRequests(), OutputCollector()
    packed = token_constraints(logit_bias=dict.fromkeys(range(8), 1.0))
    heavy = [Request(n, [5], SamplingParams(constraints=packed)) for n in (10, 11, 12)]  # 9 ids each
    in_flight.add([*map(request, range(1, 6)), *heavy], collector)
    parts = []
    while in_flight.has_pending:
        parts.append(ids(in_flight.pop_sendable(max_requests=3, max_ids=12)))
    assert parts == [[1, 2, 3], [4, 5, 10], [11, 12]]
    assert in_flight.pop_sendable() == []
