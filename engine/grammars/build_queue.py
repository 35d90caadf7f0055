"""Compile grammars on a thread of their own, so that no step waits for one."""

import logging
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from engine.errors import GrammarError
from engine.grammars.matcher import GrammarCompiler, GrammarMatcher
from engine.types import Request

log = logging.getLogger("smoe.engine")

UNUSABLE = "the request's grammar cannot be used"


@dataclass(frozen=True)
class CompiledRequest:
    """A request with its matcher, or with an error if its grammar did not compile."""

    request: Request
    matcher: GrammarMatcher | None
    error: str | None = None


class GrammarQueue:
    """One thread that compiles grammars in order of arrival. Only the engine's thread may call the methods."""

    def __init__(self, compiler: GrammarCompiler | None) -> None:
        """Without a compiler, every grammar is an error."""
        self._compiler = compiler
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
        self._pending: dict[int, tuple[Request, Future[CompiledRequest]]] = {}
        self._canceled: dict[int, Future[CompiledRequest]] = {}  # the thread still works on these

    def __len__(self) -> int:
        return len(self._pending)

    def is_compiling(self, request_id: int) -> bool:
        """Return True if the thread still works on the grammar of this canceled request: it cannot be interrupted."""
        future = self._canceled.get(request_id)
        if future is not None and future.done():
            del self._canceled[request_id]
        return request_id in self._canceled

    def submit(self, request: Request) -> None:
        """Queue the request's grammar for compilation; pop_completed() returns it."""
        self._pending[request.request_id] = request, self._thread.submit(_compile, self._compiler, request)

    def cancel(self, request_id: int) -> bool:
        """Drop a request and its matcher. Return False if it is not in the queue."""
        entry = self._pending.pop(request_id, None)
        if entry is not None and not entry[1].cancel() and not entry[1].done():
            self._canceled[request_id] = entry[1]
        return entry is not None

    def wait(self, timeout_s: float) -> None:
        """Block until one grammar is compiled, or the timeout has passed."""
        wait([future for _, future in self._pending.values()], timeout_s, FIRST_COMPLETED)

    def pop_completed(self) -> list[CompiledRequest]:
        """Remove and return the requests whose compilation has ended, in order of arrival."""
        done = [(request_id, future) for request_id, (_, future) in self._pending.items() if future.done()]
        for request_id, _ in done:
            del self._pending[request_id]
        return [future.result() for _, future in done]


def _compile(compiler: GrammarCompiler | None, request: Request) -> CompiledRequest:
    assert request.grammar is not None
    if compiler is None:
        return CompiledRequest(request, None, "grammars need a vocabulary, and this engine was started without one")
    try:
        return CompiledRequest(request, compiler.matcher(request.grammar))
    except GrammarError:
        return CompiledRequest(request, None, UNUSABLE)
    except BaseException:  # a panic in the library is not an Exception
        log.exception("a grammar could not be compiled; its request ends with an error")
        return CompiledRequest(request, None, UNUSABLE)
