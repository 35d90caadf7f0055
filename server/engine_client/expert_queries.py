"""Queries about expert usage that wait for the engine's reply. Equal queries share one reply.

The engine gets one query at a time, and rests between two of them, so that reports take a bounded share of its time. To
count over a window takes the engine's time from its steps, so that reply is also kept for callers that ask later.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from engine.messages import ExpertsQuery, ExpertsReply
from engine.types import ExpertReport
from server.engine_client.output_collector import EngineDied

SHARE = 0.1  # most of the engine's time that reports may take
KEEP_S = 1.0  # a reply about a window is given to all callers for this long

Question = tuple[float | None, bool]  # window_s and reset of ExpertsQuery


class ExpertQueries:
    """The open queries of one client. Several callers with the same question share one message to the engine."""

    def __init__(self, send: Callable[[ExpertsQuery], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._kept: dict[float, tuple[float, ExpertReport]] = {}  # by window_s, with the time of the reply
        self._replies: dict[Question, asyncio.Future[ExpertReport]] = {}
        self._questions: dict[int, Question] = {}  # by query id
        self._last_query_id = 0
        self._queue: deque[Question] = deque()  # not sent yet
        self._rest_until_s = 0.0  # no query is sent before
        self._timer: asyncio.TimerHandle | None = None

    async def ask(self, window_s: float | None, *, reset: bool) -> ExpertReport:
        """Return the report on the last `window_s` seconds, or since the last reset. Raises EngineDied.

        A report on a window is up to KEEP_S old, but never from before a reset that was answered.
        """
        if window_s is not None and (report := self._kept_report(window_s)) is not None:
            return report
        question = window_s, reset
        if question not in self._replies:
            self._replies[question] = asyncio.get_running_loop().create_future()
            self._queue.append(question)
            self._send_next()
        return await asyncio.shield(self._replies[question])

    def _send_next(self) -> None:
        """Send the next query, unless the engine works on one or rests; then it is sent later."""
        if self._questions or self._timer is not None or not self._queue:
            return
        rest_s = self._rest_until_s - self._clock()
        if rest_s > 0:
            self._timer = asyncio.get_running_loop().call_later(rest_s, self._end_rest)
            return
        question = self._queue.popleft()
        self._last_query_id += 1
        self._questions[self._last_query_id] = question
        self._send(ExpertsQuery(self._last_query_id, *question))

    def _end_rest(self) -> None:
        self._timer = None
        self._send_next()

    def resolve(self, reply: ExpertsReply) -> None:
        """Give the engine's reply to all callers that wait for it."""
        question = self._questions.pop(reply.query_id)
        window_s, reset = question
        if reset:
            self._kept.clear()  # the engine replies in order: all replies from before the reset have come
        elif window_s is not None:
            self._kept[window_s] = self._clock(), reply.report
        self._replies.pop(question).set_result(reply.report)
        self._rest_until_s = self._clock() + reply.engine_s * (1 - SHARE) / SHARE
        self._send_next()

    def fail(self, reason: str) -> None:
        """Raise EngineDied(reason) in all waiting callers."""
        for reply in self._replies.values():
            reply.set_exception(EngineDied(reason))
            reply.exception()  # marks it as retrieved: all callers may have been cancelled
        self._replies.clear()
        self._questions.clear()
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._kept.clear()

    def _kept_report(self, window_s: float) -> ExpertReport | None:
        """Return the reply that came less than KEEP_S ago, or None; drop all older ones."""
        oldest_s = self._clock() - KEEP_S
        self._kept = {window: kept for window, kept in self._kept.items() if kept[0] > oldest_s}
        return self._kept[window_s][1] if window_s in self._kept else None
