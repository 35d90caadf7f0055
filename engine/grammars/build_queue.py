"""Matchers built beside the engine's steps: a grammar may take a while, and no step waits for it."""

import logging
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from engine.errors import GrammarError
from engine.grammars.matcher import GrammarCompiler, GrammarMatcher
from engine.types import Request

log = logging.getLogger("smoe.engine")

BROKEN = "the request's grammar cannot be used"


@dataclass(frozen=True)
class CompiledRequest:
    """A request that can be queued now, or what is wrong with its grammar."""

    request: Request
    matcher: GrammarMatcher | None
    error: str | None = None


class GrammarQueue:
    """One thread that builds, in the order of arrival. Call it from the engine's thread alone."""

    def __init__(self, compiler: GrammarCompiler | None) -> None:
        """Without a compiler every grammar is an error."""
        self._compiler = compiler
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")
        self._pending: dict[int, tuple[Request, Future[CompiledRequest]]] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def start(self, request: Request) -> None:
        """Begins with the request's grammar; `take_built` gives it back."""
        self._pending[request.request_id] = request, self._thread.submit(_build, self._compiler, request)

    def forget(self, request_id: int) -> bool:
        """True if the request was here; its matcher is dropped."""
        entry = self._pending.pop(request_id, None)
        if entry is not None:
            entry[1].cancel()
        return entry is not None

    def wait(self, timeout_s: float) -> None:
        """Until one is built, or the time is over."""
        wait([future for _, future in self._pending.values()], timeout_s, FIRST_COMPLETED)

    def take_built(self) -> list[CompiledRequest]:
        """Those that are done, in the order of arrival."""
        done = [(request_id, future) for request_id, (_, future) in self._pending.items() if future.done()]
        for request_id, _ in done:
            del self._pending[request_id]
        return [future.result() for _, future in done]


def _build(compiler: GrammarCompiler | None, request: Request) -> CompiledRequest:
    assert request.grammar is not None
    if compiler is None:
        return CompiledRequest(request, None, "this engine was started without a vocabulary, which a grammar needs")
    try:
        return CompiledRequest(request, compiler.matcher(request.grammar))
    except GrammarError:
        return CompiledRequest(request, None, BROKEN)
    except BaseException:  # a panic of the library is no Exception
        log.exception("a grammar could not be built; its request ends with an error")
        return CompiledRequest(request, None, BROKEN)
