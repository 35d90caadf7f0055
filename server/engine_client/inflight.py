"""The book of open requests: each is kept until its first output, so that it can be sent to another engine.

Sans-IO: it is told what happens and says what to send. Knows requests and mailboxes, no process and no socket.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.types import Request, RequestOutput
from server.engine_client.output_collector import OutputCollector

Place = Literal["held", "sent", "started"]  # here; in the engine's queue, as far as is known; in one of its steps

DEADLINE_GRACE_S = 1.0  # the engine ends requests in time; one that cannot is spoken for after so long
KILLER = "the engine died twice while computing this request"


@dataclass(slots=True)
class Entry:
    """One open request."""

    request: Request | None  # until its first output; then it can never be sent again
    mailbox: OutputCollector
    deadline_s: float | None
    queue_deadline_s: float | None
    place: Place = "held"

    @property
    def may_have_run(self) -> bool:
        """Whether the engine may have died of it. Grammars are built while their requests still queue."""
        has_grammar = self.request is not None and self.request.grammar is not None
        return self.place == "started" or (self.place == "sent" and has_grammar)


@dataclass(frozen=True)
class CrashReport:
    """What an engine's death means."""

    lost: list[OutputCollector]  # part of what came of their requests may have been read: they end
    culprit: tuple[OutputCollector, RequestOutput] | None  # the request that killed it, and what to tell of it
    num_lost: int
    num_kept: int


class InFlightRequests:
    """Every request from its submission to its last output, its abort, or the death that ends it.

    Those that may have killed an engine are suspects: the next one gets them one at a time, each alone with those that
    have given an output since, and everybody else waits until all of them are cleared.
    """

    def __init__(self) -> None:
        self._open: dict[int, Entry] = {}  # in the order of arrival
        self._held: dict[int, Entry] = {}  # of those, the ones to send
        self._suspects: dict[int, Entry] = {}
        self._timed: dict[int, Entry] = {}  # those with a deadline
        self._on_trial: int | None = None  # the suspect that the engine has

    def __len__(self) -> int:
        return len(self._open)

    def add(self, requests: Sequence[Request], mailbox: OutputCollector) -> None:
        """New ones, to be sent behind all others."""
        for request in requests:
            entry = Entry(request, mailbox, request.deadline_s, request.queue_deadline_s)
            self._open[request.request_id] = self._held[request.request_id] = entry
            if request.deadline_s is not None or request.queue_deadline_s is not None:
                self._timed[request.request_id] = entry

    def pop_sendable(self) -> list[Request]:
        """What the engine is to get now; from here on it has it."""
        if self._on_trial is not None or not (self._suspects or self._held):
            return []
        if self._suspects:
            self._on_trial = next(iter(self._suspects))
            return [_sent(self._suspects[self._on_trial])]
        held, self._held = self._held, {}
        return [_sent(entry) for entry in held.values()]

    def started(self, request_ids: Iterable[int]) -> None:
        """The engine computes these."""
        for request_id in request_ids:
            if (entry := self._open.get(request_id)) is not None:
                entry.place = "started"

    def take(self, output: RequestOutput) -> OutputCollector | None:
        """Whose output it is; nobody's where the request was aborted here."""
        entry = self._open.get(output.request_id)
        if entry is None:
            return None
        if entry.request is not None:
            entry.request, entry.place = None, "started"
            self._clear(output.request_id)
        if output.finish_reason is not None:
            self._remove(output.request_id)
        return entry.mailbox

    def abort(self, request_ids: Iterable[int]) -> list[int]:
        """Forgets these; returns those of them that the engine has."""
        entries = {request_id: self._open[request_id] for request_id in request_ids if request_id in self._open}
        for request_id in entries:
            self._remove(request_id)
        return [request_id for request_id, entry in entries.items() if entry.place != "held"]

    def expire(self, now_s: float) -> tuple[list[tuple[OutputCollector, RequestOutput]], list[int]]:
        """Ends those whose time has been over for a while, which an engine that works has done before: what to tell of
        them, and which of them the engine has."""
        over = [(request_id, reason) for request_id, e in self._timed.items() if (reason := _expiry(e, now_s))]
        told = [(self._open[id_].mailbox, RequestOutput(id_, finish_reason=reason)) for id_, reason in over]
        return told, self.abort([request_id for request_id, _ in over])

    def engine_died(self) -> CrashReport:
        """Nothing is in an engine any more. Its killer is a suspect that it began and that nobody else was with."""
        in_engine = {request_id: entry for request_id, entry in self._open.items() if entry.place != "held"}
        lost = {id(entry.mailbox): entry.mailbox for entry in in_engine.values() if entry.request is None}
        culprit = self._culprit() if not lost else None
        self._on_trial = None
        num_before = len(self._open)
        for request_id in [key for key, entry in self._open.items() if id(entry.mailbox) in lost]:
            self._remove(request_id)
        for request_id in in_engine.keys() & self._open.keys():
            if in_engine[request_id].may_have_run:
                self._suspects[request_id] = in_engine[request_id]
            in_engine[request_id].place = "held"
        self._hold_all()
        num_kept = len(self._open)
        return CrashReport(list(lost.values()), culprit, num_before - num_kept, num_kept)

    def close(self) -> list[OutputCollector]:
        """Empties the book; returns whom it belongs to."""
        mailboxes = {id(entry.mailbox): entry.mailbox for entry in self._open.values()}
        for request_id in list(self._open):
            self._remove(request_id)
        return list(mailboxes.values())

    def _culprit(self) -> tuple[OutputCollector, RequestOutput] | None:
        if self._on_trial is None or not (entry := self._open[self._on_trial]).may_have_run:
            return None
        output = RequestOutput(self._on_trial, finish_reason="error", error=KILLER)
        self._remove(self._on_trial)
        return entry.mailbox, output

    def _hold_all(self) -> None:
        """By arrival, suspects apart."""
        self._suspects = {key: entry for key, entry in self._open.items() if key in self._suspects}
        self._held = {key: entry for key, entry in self._open.items() if key not in self._suspects}

    def _clear(self, request_id: int) -> None:
        self._suspects.pop(request_id, None)
        if self._on_trial == request_id:
            self._on_trial = None

    def _remove(self, request_id: int) -> None:
        self._clear(request_id)
        for place in (self._open, self._held, self._timed):
            place.pop(request_id, None)


def _sent(entry: Entry) -> Request:
    assert entry.request is not None, "what has given an output is never sent again"
    entry.place = "sent"
    return entry.request


def _expiry(entry: Entry, now_s: float) -> Literal["timeout", "queue_timeout"] | None:
    """Of what was begun, only the whole's deadline counts."""
    if entry.deadline_s is not None and entry.deadline_s + DEADLINE_GRACE_S <= now_s:
        return "timeout"
    waits = entry.place != "started" and entry.queue_deadline_s is not None
    return "queue_timeout" if waits and (entry.queue_deadline_s or 0.0) + DEADLINE_GRACE_S <= now_s else None
