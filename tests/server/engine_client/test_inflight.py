"""The book of open requests, alone: what is kept, who is suspected, what is sent when. A scripted engine dies on it."""

import asyncio
import random
from collections.abc import Iterator

import pytest

from engine.types import Request, RequestOutput, SamplingParams
from server.engine_client.inflight import DEADLINE_GRACE_S, KILLER, CrashReport, InFlightRequests
from server.engine_client.output_collector import OutputCollector

pytestmark = pytest.mark.anyio


def request(request_id: int, **fields: object) -> Request:
    return Request(request_id, [5], SamplingParams(), **fields)  # type: ignore[arg-type]


def ids(requests: list[Request]) -> list[int]:
    return [request.request_id for request in requests]


def first_output(request_id: int) -> RequestOutput:
    return RequestOutput(request_id, [7])


def last_output(request_id: int) -> RequestOutput:
    return RequestOutput(request_id, [8], finish_reason="length")


def book_of(*requests: Request) -> tuple[InFlightRequests, list[OutputCollector]]:
    """Each request with a mailbox of its own; all are sent."""
    book, mailboxes = InFlightRequests(), []
    for one in requests:
        mailboxes.append(OutputCollector())
        book.add([one], mailboxes[-1])
    assert book.pop_sendable() == list(requests)
    return book, mailboxes


async def test_what_has_given_an_output_is_lost_and_never_sent_again() -> None:
    book, mailboxes = book_of(request(1), request(2))
    assert book.take(first_output(1)) is mailboxes[0]
    casualties = book.engine_died()
    assert casualties == CrashReport([mailboxes[0]], None, num_lost=1, num_kept=1)
    assert ids(book.pop_sendable()) == [2]


async def test_choices_that_share_a_mailbox_are_lost_together() -> None:
    book, mailbox = InFlightRequests(), OutputCollector()
    book.add([request(1), request(2)], mailbox)
    book.pop_sendable()
    book.take(first_output(2))
    assert book.engine_died().lost == [mailbox]
    assert len(book) == 0 and book.pop_sendable() == []


async def test_what_only_queued_is_sent_again_at_once_and_in_order() -> None:
    book, _ = book_of(*map(request, range(1, 6)))
    assert book.engine_died().num_kept == 5
    assert ids(book.pop_sendable()) == [1, 2, 3, 4, 5]


async def test_suspects_are_sent_one_at_a_time_and_the_others_wait_for_them() -> None:
    book, _ = book_of(*map(request, range(1, 6)))
    book.started([2, 4])
    book.engine_died()
    assert ids(book.pop_sendable()) == [2]
    assert book.pop_sendable() == []
    book.started([2])
    book.take(first_output(2))
    assert ids(book.pop_sendable()) == [4]
    book.add([request(6)], OutputCollector())
    assert book.pop_sendable() == []
    book.take(last_output(4))
    assert ids(book.pop_sendable()) == [1, 3, 5, 6]


async def test_a_grammar_may_have_killed_it_while_its_request_still_queued() -> None:
    book, _ = book_of(request(1), request(2, grammar="{}"))
    book.engine_died()
    assert ids(book.pop_sendable()) == [2]


async def test_a_suspect_that_kills_it_again_alone_is_told_so_and_is_the_only_one() -> None:
    book, mailboxes = book_of(*map(request, range(1, 4)))
    book.started([1, 2, 3])
    book.engine_died()
    book.pop_sendable()
    book.started([1])
    casualties = book.engine_died()
    assert casualties.culprit == (mailboxes[0], RequestOutput(1, finish_reason="error", error=KILLER))
    assert (casualties.lost, casualties.num_kept) == ([], 2)
    assert ids(book.pop_sendable()) == [2]


async def test_a_suspect_in_company_is_tried_again() -> None:
    """Either may have done it. The one with an output is lost in any case."""
    book, mailboxes = book_of(request(1), request(2))
    book.started([1, 2])
    book.engine_died()
    book.pop_sendable()
    book.take(first_output(1))
    assert ids(book.pop_sendable()) == [2]
    book.started([2])
    casualties = book.engine_died()
    assert (casualties.lost, casualties.culprit) == ([mailboxes[0]], None)
    assert ids(book.pop_sendable()) == [2]


async def test_a_suspect_that_was_not_begun_is_no_killer() -> None:
    book, _ = book_of(request(1))
    book.started([1])
    book.engine_died()
    book.pop_sendable()
    assert book.engine_died().culprit is None
    assert ids(book.pop_sendable()) == [1]


async def test_an_aborted_suspect_makes_room_for_the_next() -> None:
    book, _ = book_of(request(1), request(2))
    book.started([1, 2])
    book.engine_died()
    book.pop_sendable()
    assert book.abort([1, 99]) == [1]  # the engine has it
    assert ids(book.pop_sendable()) == [2]
    assert book.abort([2, 2]) == [2]
    assert len(book) == 0


async def test_deadlines_count_while_there_is_no_engine() -> None:
    book = InFlightRequests()
    waits, whole, patient = OutputCollector(), OutputCollector(), OutputCollector()
    book.add([request(1, queue_deadline_s=10.0)], waits)
    book.add([request(2, deadline_s=20.0, queue_deadline_s=90.0)], whole)
    book.add([request(3)], patient)
    assert book.expire(10.0) == ([], [])
    assert book.expire(10.0 + DEADLINE_GRACE_S) == ([(waits, RequestOutput(1, finish_reason="queue_timeout"))], [])
    assert book.expire(20.0 + DEADLINE_GRACE_S) == ([(whole, RequestOutput(2, finish_reason="timeout"))], [])
    assert len(book) == 1


async def test_of_what_was_begun_only_the_whole_deadline_counts_and_the_engine_is_told() -> None:
    book, [mailbox] = book_of(request(1, queue_deadline_s=10.0, deadline_s=20.0))
    book.started([1])
    assert book.expire(15.0) == ([], [])
    book.take(first_output(1))
    assert book.expire(30.0) == ([(mailbox, RequestOutput(1, finish_reason="timeout"))], [1])


class Engine:
    """Has room for `room` requests; begins them in order, gives each two outputs, and dies of a killer, by chance, or
    of one that has given its first output."""

    def __init__(self, chance: random.Random, killers: set[int], late_killers: set[int], room: int) -> None:
        self.queue: list[int] = []
        self.running: dict[int, int] = {}
        self.chance, self.killers, self.late_killers, self.room = chance, killers, late_killers, room

    def step(self, book: InFlightRequests) -> Iterator[RequestOutput]:
        """Raises RuntimeError where it dies."""
        while self.queue and len(self.running) < self.room:
            request_id = self.queue.pop(0)
            self.running[request_id] = 0
            book.started([request_id])
        if self.running.keys() & self.killers or any(n for id_, n in self.running.items() if id_ in self.late_killers):
            raise RuntimeError
        for request_id in list(self.running):
            if self.chance.random() < 0.7:
                self.running[request_id] += 1
                is_last = self.running[request_id] == 2
                if is_last:
                    del self.running[request_id]
                yield last_output(request_id) if is_last else first_output(request_id)


@pytest.mark.parametrize("seed", range(10))
async def test_under_any_deaths_every_request_ends_once_and_only_killers_are_blamed(seed: int, scale: int) -> None:
    for number in range(40 * scale):
        await deaths(random.Random(f"{seed} {number}"))


async def deaths(chance: random.Random) -> None:
    """Killers of both kinds among innocents, aborts, and arrivals while it goes on."""
    book, everybody = InFlightRequests(), list(range(1, 31))
    killers = {request_id for request_id in everybody if chance.random() < 0.1}
    late = {request_id for request_id in everybody if chance.random() < 0.1} - killers
    owner: dict[int, OutputCollector] = {}
    ends: dict[int, str] = {}
    given: dict[int, int] = dict.fromkeys(everybody, 0)
    arriving = list(everybody)
    engine = Engine(chance, killers, late, room=chance.randint(1, 8))
    for _ in range(3000):
        if arriving and chance.random() < 0.5:
            mailbox, request_id = OutputCollector(), arriving.pop(0)
            owner[request_id] = mailbox
            book.add([request(request_id)], mailbox)
        for one in book.pop_sendable():
            assert given[one.request_id] == 0, "sent again though an output was given"
            engine.queue.append(one.request_id)
        if chance.random() < 0.02 and (open_ids := [id_ for id_ in owner if id_ not in ends]):
            gone = chance.choice(open_ids)
            in_engine = book.abort([gone])
            ends[gone] = "abort"
            engine.queue = [id_ for id_ in engine.queue if id_ not in in_engine]
            engine.running = {id_: n for id_, n in engine.running.items() if id_ not in in_engine}
        try:
            for output in engine.step(book):
                assert book.take(output) is owner[output.request_id]
                given[output.request_id] += 1
                if output.finish_reason is not None:
                    assert output.request_id not in ends
                    ends[output.request_id] = "length"
        except RuntimeError:
            casualties = book.engine_died()
            for request_id, mailbox in owner.items():
                if any(mailbox is lost for lost in casualties.lost):
                    assert request_id not in ends and given[request_id] == 1
                    ends[request_id] = "lost"
            if casualties.culprit is not None:
                blamed = casualties.culprit[1].request_id
                assert blamed in killers and blamed not in ends
                ends[blamed] = "blamed"
            engine.queue, engine.running = [], {}
        if not arriving and len(ends) == len(everybody):
            break
    assert len(ends) == len(everybody), f"without an end: {set(everybody) - set(ends)}"
    assert len(book) == 0 and book.pop_sendable() == []
    assert {id_ for id_ in killers if ends[id_] not in ("blamed", "abort")} == set()
    await asyncio.sleep(0)
