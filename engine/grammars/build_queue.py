"""Build grammars on a thread of their own, so that no step waits for one, and in fair turns between tenants."""

import logging
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

from engine.errors import GrammarError
from engine.grammars.fair_thread import FairThread
from engine.grammars.matcher import BuiltGrammar, GrammarCompiler, GrammarMatcher
from engine.grammars.parser_places import ParserPlaces
from engine.types import Request

log = logging.getLogger("smoe.engine")

UNUSABLE = "the request's grammar cannot be used"
NO_VOCABULARY = "grammars need a vocabulary, and this engine was started without one"


@dataclass(frozen=True)
class CompiledRequest:
    """A request with its matcher, or with an error if its grammar cannot be built."""

    request: Request
    matcher: GrammarMatcher | None
    error: str | None = None


class GrammarQueue:
    """Queue of grammars to build. Only the engine's thread may call the methods.

    The choices of one HTTP request share a build. Requests never do: copies share limits, see
    docs/decisions/0029-grammars-in-the-sandbox.md.
    """

    def __init__(self, compiler: GrammarCompiler | None, num_parsers: int, num_tenants: int = 1) -> None:
        """Without a compiler, every grammar is an error. `num_parsers`: builds beyond it wait until a request ends."""
        self._compiler = compiler
        self._thread = FairThread("grammar")
        self._places = ParserPlaces(num_parsers, self._thread, num_tenants)
        self._pending: dict[int, tuple[Request, Future[BuiltGrammar | str]]] = {}
        self._canceled: dict[int, Future[BuiltGrammar | str]] = {}  # the thread still works on these
        self._builds: WeakValueDictionary[tuple[int, str], Future[BuiltGrammar | str]] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._pending)

    def is_compiling(self, request_id: int) -> bool:
        """Return True if the thread still works on the grammar of this canceled request: it cannot be interrupted."""
        future = self._canceled.get(request_id)
        if future is not None and future.done():
            del self._canceled[request_id]
        return request_id in self._canceled

    def submit(self, request: Request) -> None:
        """Queue the request's grammar, unless another choice of its HTTP request has; pop_completed() returns it."""
        assert request.grammar is not None
        key = (request.request_id if request.group is None else request.group), request.grammar
        build = self._builds.get(key)
        if build is None or build.cancelled():  # of a choice that was canceled before its build began
            build = self._places.submit(request.tenant, partial(_build, self._compiler, request.grammar))
            self._builds[key] = build
        self._pending[request.request_id] = request, build

    def cancel(self, request_id: int) -> bool:
        """Drop a request and its matcher. Return False if it is not in the queue."""
        entry = self._pending.pop(request_id, None)
        if entry is None:
            return False
        request, build = entry
        is_shared = any(build is other for _, other in self._pending.values())
        if not build.done() and (is_shared or not self._places.cancel(request.tenant, build)):
            self._canceled[request_id] = build
        return True

    def wait(self, timeout_s: float) -> None:
        """Block until one grammar is built, or the timeout has passed."""
        wait({build for _, build in self._pending.values()}, timeout_s, FIRST_COMPLETED)

    def pop_completed(self) -> list[CompiledRequest]:
        """Remove and return the requests whose grammar is built or cannot be, in order of arrival."""
        self._places.give_out()
        done = [(request, build) for request, build in self._pending.values() if build.done()]
        for request, _ in done:
            del self._pending[request.request_id]
        return [self._completed(request, build) for request, build in done]

    def _completed(self, request: Request, build: "Future[BuiltGrammar | str]") -> CompiledRequest:
        built = build.result()
        if isinstance(built, str):
            return CompiledRequest(request, None, built)
        matcher = built.matcher(partial(self._thread.submit, request.tenant))
        matcher.keeps_alive = build  # other choices of the request may still arrive, and find it
        return CompiledRequest(request, matcher)


def _build(compiler: GrammarCompiler | None, grammar: str, place: object) -> BuiltGrammar | str:
    """Return the built grammar, or the reason why it cannot be."""
    if compiler is None:
        return NO_VOCABULARY
    try:
        return compiler.build(grammar, place)
    except GrammarError:
        return UNUSABLE
    except BaseException:  # a panic in the library is not an Exception
        log.exception("a grammar could not be built; its request ends with an error")
        return UNUSABLE
