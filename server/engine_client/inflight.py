"""All open requests. Each is kept until its first output, so that it can be sent again to another engine process.

Sans-IO: callers report events, and it returns what to send. Knows requests and collectors, no process and no socket.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.types import Request, RequestOutput, num_carried_ids
from server.engine_client.output_collector import OutputCollector

Place = Literal["pending", "sent", "started"]  # not sent; as far as known in the engine's queue; in one of its steps

DEADLINE_GRACE_S = 1.0  # the engine enforces deadlines itself; this much later the server does it in its place
CULPRIT_ERROR = "the engine died twice while computing this request"


@dataclass(slots=True)
class Entry:
    """One open request."""

    request: Request | None  # None after its first output: it can never be sent again
    collector: OutputCollector
    deadline_s: float | None
    queue_deadline_s: float | None
    place: Place = "pending"
    adapter: str = ""  # digest of its LoRA adapter

    @property
    def may_have_run(self) -> bool:
        """True if this request may have crashed the engine. Grammars are compiled while their requests still queue."""
        has_grammar = self.request is not None and self.request.grammar is not None
        return self.place == "started" or (self.place == "sent" and has_grammar)


@dataclass(frozen=True)
class CrashReport:
    """Consequences of a crash of the engine for the open requests."""

    lost: list[OutputCollector]  # clients may have read a part of the outputs: these requests fail
    culprit: tuple[OutputCollector, RequestOutput] | None  # the request that crashed the engine, and its error output
    num_lost: int
    num_kept: int
    culprit_left: bool = False  # the request that crashed the engine was aborted just before: nobody gets an error

    def summary(self) -> str:
        """Return one phrase for the log: "2 requests fail, 3 will be sent again"."""
        culprit = "" if self.culprit is None else ", the one that crashed the engine twice gets an error"
        return f"{self.num_lost} requests fail, {self.num_kept} will be sent again{culprit}"


class InFlightRequests:
    """Every request from its submission to its last output, its abort, or the crash that ends it.

    Requests that may have crashed an engine are suspects. The next engine gets them one at a time, each only together
    with requests that have given an output since, and all other requests wait until no suspect is left. The engine may
    compute an aborted request until it confirms the abort: until then no other suspect is sent, and none is blamed.
    """

    def __init__(self) -> None:
        self._open: dict[int, Entry] = {}  # in the order of arrival
        self._pending: dict[int, Entry] = {}  # those of them to send, without suspects
        self._suspects: dict[int, Entry] = {}
        self._timed: dict[int, Entry] = {}  # those with a deadline
        self._probing: int | None = None  # the suspect that was sent to the engine; it may have been aborted since
        self._aborting: dict[int, Entry] = {}  # aborted requests that the engine may still compute

    def __len__(self) -> int:
        return len(self._open)

    def add(self, requests: Sequence[Request], collector: OutputCollector) -> None:
        """Add new requests behind all others."""
        for request in requests:
            entry = Entry(request, collector, request.deadline_s, request.queue_deadline_s, adapter=request.adapter)
            self._open[request.request_id] = self._pending[request.request_id] = entry
            if request.deadline_s is not None or request.queue_deadline_s is not None:
                self._timed[request.request_id] = entry

    @property
    def has_pending(self) -> bool:
        """True if pop_sendable() may return more requests: they are not sent yet, and nothing holds them back."""
        return bool(self._pending) and self._probing is None and not self._suspects

    def have_adapter(self, digest: str) -> bool:
        """Return whether a request that has not ended has this adapter, aborted ones in the engine included."""
        return any(entry.adapter == digest for entries in (self._open, self._aborting) for entry in entries.values())

    def pop_sendable(self, max_requests: int = 2**31, max_ids: int = 2**31) -> list[Request]:
        """Return the next requests to send, and mark them as sent.

        At most `max_requests`; no further one once they carry `max_ids` token ids or more.
        """
        if self._probing is not None or not (self._suspects or self._pending):
            return []
        if self._suspects:
            self._probing = next(iter(self._suspects))
            return [_mark_sent(self._suspects[self._probing])]
        requests: list[Request] = []
        num_ids = 0
        while self._pending and len(requests) < max_requests and num_ids < max_ids:
            request = _mark_sent(self._pending.pop(next(iter(self._pending))))
            requests.append(request)
            num_ids += num_carried_ids(request)
        return requests

    def started(self, request_ids: Iterable[int]) -> None:
        """Record that the engine computes these requests."""
        for request_id in request_ids:
            if (entry := self._open.get(request_id) or self._aborting.get(request_id)) is not None:
                entry.place = "started"

    def take(self, output: RequestOutput) -> OutputCollector | None:
        """Record an output and return the collector it belongs to; None if its request was aborted."""
        entry = self._open.get(output.request_id)
        if entry is None:
            return None
        if entry.request is not None:
            entry.request, entry.place = None, "started"
            self._clear_suspect(output.request_id)
        if output.finish_reason is not None:
            self._remove(output.request_id)
        return entry.collector

    def abort(self, request_ids: Iterable[int]) -> list[int]:
        """Forget these requests; return the ids of those that the engine has. It confirms their aborts later."""
        entries = {request_id: self._open[request_id] for request_id in request_ids if request_id in self._open}
        in_engine = {request_id: entry for request_id, entry in entries.items() if entry.place != "pending"}
        probing = self._probing
        for request_id in entries:
            self._remove(request_id)
        self._aborting |= in_engine
        self._probing = probing if probing in in_engine else self._probing
        return list(in_engine)

    def confirm_aborts(self, request_ids: Iterable[int]) -> None:
        """Record that the engine works no more on these aborted requests."""
        for request_id in request_ids:
            if self._aborting.pop(request_id, None) is not None:
                self._clear_suspect(request_id)

    def expire(self, now_s: float) -> tuple[list[tuple[OutputCollector, RequestOutput]], list[int]]:
        """End requests whose deadline passed DEADLINE_GRACE_S ago: the engine could not end them itself.

        Returns their final outputs with their collectors, and the ids of those that the engine has.
        """
        overdue = [(request_id, reason) for request_id, e in self._timed.items() if (reason := _overdue(e, now_s))]
        outputs = [(self._open[id_].collector, RequestOutput(id_, finish_reason=reason)) for id_, reason in overdue]
        return outputs, self.abort([request_id for request_id, _ in overdue])

    def engine_died(self) -> CrashReport:
        """Make all requests without an output pending again and remove the others.

        The culprit is a suspect that the engine had started while it had no other request, aborted ones included.
        """
        in_engine = {request_id: entry for request_id, entry in self._open.items() if entry.place != "pending"}
        lost = {id(entry.collector): entry.collector for entry in in_engine.values() if entry.request is None}
        is_alone = not lost and self._aborting.keys() <= {self._probing}
        culprit = self._pop_culprit() if is_alone else None
        culprit_left = is_alone and any(entry.may_have_run for entry in self._aborting.values())
        self._probing = None
        self._aborting = {}
        num_before = len(self._open)
        for request_id in [key for key, entry in self._open.items() if id(entry.collector) in lost]:
            self._remove(request_id)
        for request_id in in_engine.keys() & self._open.keys():
            if in_engine[request_id].may_have_run:
                self._suspects[request_id] = in_engine[request_id]
            in_engine[request_id].place = "pending"
        self._sort_pending()
        num_kept = len(self._open)
        return CrashReport(list(lost.values()), culprit, num_before - num_kept, num_kept, culprit_left)

    def close(self) -> list[OutputCollector]:
        """Remove all requests; return their collectors."""
        collectors = {id(entry.collector): entry.collector for entry in self._open.values()}
        for request_id in list(self._open):
            self._remove(request_id)
        self._aborting, self._probing = {}, None
        return list(collectors.values())

    def _pop_culprit(self) -> tuple[OutputCollector, RequestOutput] | None:
        if self._probing is None or (entry := self._open.get(self._probing)) is None or not entry.may_have_run:
            return None
        output = RequestOutput(self._probing, finish_reason="error", error=CULPRIT_ERROR)
        self._remove(self._probing)
        return entry.collector, output

    def _sort_pending(self) -> None:
        """Split all open requests into suspects and pending ones, both in the order of arrival."""
        self._suspects = {key: entry for key, entry in self._open.items() if key in self._suspects}
        self._pending = {key: entry for key, entry in self._open.items() if key not in self._suspects}

    def _clear_suspect(self, request_id: int) -> None:
        self._suspects.pop(request_id, None)
        if self._probing == request_id:
            self._probing = None

    def _remove(self, request_id: int) -> None:
        self._clear_suspect(request_id)
        for entries in (self._open, self._pending, self._timed):
            entries.pop(request_id, None)


def _mark_sent(entry: Entry) -> Request:
    assert entry.request is not None, "a request that has given an output is never sent again"
    entry.place = "sent"
    return entry.request


def _overdue(entry: Entry, now_s: float) -> Literal["timeout", "queue_timeout"] | None:
    """Return the finish reason of a request whose deadline has passed. The queue's does not apply once it started."""
    if entry.deadline_s is not None and entry.deadline_s + DEADLINE_GRACE_S <= now_s:
        return "timeout"
    is_queued = entry.place != "started" and entry.queue_deadline_s is not None
    return "queue_timeout" if is_queued and (entry.queue_deadline_s or 0.0) + DEADLINE_GRACE_S <= now_s else None
