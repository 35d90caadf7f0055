"""Queries about expert usage that wait for the engine's reply. Equal queries share one reply."""

import asyncio
from collections.abc import Callable

from engine.messages import ExpertsQuery, ExpertsReply
from engine.types import ExpertReport
from server.engine_client.output_collector import EngineDied

Question = tuple[float | None, bool]  # window_s and reset of ExpertsQuery


class ExpertQueries:
    """The open queries of one client. Several callers with the same question share one message to the engine."""

    def __init__(self, send: Callable[[ExpertsQuery], None]) -> None:
        self._send = send
        self._replies: dict[Question, asyncio.Future[ExpertReport]] = {}
        self._questions: dict[int, Question] = {}  # by query id
        self._last_query_id = 0

    async def ask(self, window_s: float | None, *, reset: bool) -> ExpertReport:
        """Return the report on the last `window_s` seconds, or since the last reset. Raises EngineDied."""
        question = window_s, reset
        if question not in self._replies:
            self._replies[question] = asyncio.get_running_loop().create_future()
            self._last_query_id += 1
            self._questions[self._last_query_id] = question
            self._send(ExpertsQuery(self._last_query_id, window_s, reset))
        return await asyncio.shield(self._replies[question])

    def resolve(self, reply: ExpertsReply) -> None:
        """Give the engine's reply to all callers that wait for it."""
        self._replies.pop(self._questions.pop(reply.query_id)).set_result(reply.report)

    def fail(self, reason: str) -> None:
        """Raise EngineDied(reason) in all waiting callers."""
        for reply in self._replies.values():
            reply.set_exception(EngineDied(reason))
            reply.exception()  # marks it as retrieved: all callers may have been cancelled
        self._replies.clear()
        self._questions.clear()
