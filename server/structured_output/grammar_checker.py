"""Grammars are tried out before a request is queued: one that cannot be followed is a 400, not an error later on."""

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from engine.errors import GrammarError
from engine.grammars.matcher import GrammarCompiler
from server.errors import ApiError, invalid_value, queue_full
from server.schemas.generation import GenerationRequest
from server.structured_output.constraints import CompiledGrammar, Constraint, constraint_of, too_large
from server.tokenizer.tokenizer import Tokenizer

NUM_THREADS = 2
MAX_REMEMBERED = 4096
MAX_PENDING = 64  # grammars tried out, or waiting for it, at once
MOST_S = 0.3  # that one takes at the limits

# Words of llguidance's messages, and ours for them: its own may quote the client's text.
REASONS = {
    "too big": "it is too large",
    "too large": "it is too large",
    "limit": "it takes more work than this server does",
    "nsatisfiable": "no text can fulfil it",
    "NoExtension": "no text can fulfil it",
    "not present in a registry": "it refers to something outside itself",
    "look-around": "looking ahead or behind is not supported",
    "Unknown format": "it names a format that is not supported",
    "egex": "it is not a regular expression that is supported here",
    "end token": "the model has no end token",
}
SCHEMA_KEYWORDS = frozenset(
    {"contains", "contentEncoding", "contentMediaType", "contentSchema", "dependentRequired", "dependentSchemas", "if"}
    | {"dependencies", "else", "maxContains", "minContains", "not", "propertyNames", "then", "unevaluatedItems"}
    | {"unevaluatedProperties", "uniqueItems", "oneOf", "minProperties", "maxProperties", "patternProperties"}
)


class GrammarChecker:
    """Tries grammars out, beside the event loop, under the limits that hold in the engine as well.

    The limits are counts of work; a grammar at their edge takes some 0.3 s. What is known is remembered, what is being
    tried out is not tried out a second time, and where too many wait the next is told to come again.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._compiler = GrammarCompiler(tokenizer.vocabulary(), tokenizer.vocab_size, tokenizer.eos_ids)
        self._end_ids = frozenset(tokenizer.eos_ids)
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="grammar")
        self._known: OrderedDict[bytes, str | None] = OrderedDict()  # digest of a grammar -> what is wrong with it
        self._pending: dict[bytes, asyncio.Future[str | None]] = {}  # likewise, to be known

    async def compile(
        self, request: GenerationRequest, constraints: Sequence[Constraint] = ()
    ) -> CompiledGrammar | None:
        """The form of the answer, ready for the engine; None where any text will do.

        `constraints`: what the request implies otherwise, the last being the answer's own. Raises ApiError 400 for one
        that cannot be followed, or that another parameter contradicts; 429 where too many are being tried out.
        """
        constraint = None if constraints else await self._asked(request)
        form: CompiledGrammar | None = None
        for asked in [*constraints, *([constraint] if constraint else [])]:
            form = await self._checked(asked)
        if form is not None:
            check_no_contradiction(request, self._end_ids)
        return form

    async def unsupported_keywords(self, constraint: Constraint) -> list[str]:
        """What the constraint's schema says that no grammar here can; nothing where another fault comes first."""
        fault = await self._fault_of(_digest(constraint.grammar), constraint.grammar)
        return [] if fault is None else _unsupported_keywords(fault)

    async def _asked(self, request: GenerationRequest) -> Constraint | None:
        """In a thread: writing a schema of a megabyte down takes a while, even to find it too large."""
        if request.response_format is None and request.structured_outputs is None:
            return None
        return await asyncio.to_thread(constraint_of, request)

    async def _checked(self, constraint: Constraint) -> CompiledGrammar:
        grammar = constraint.grammar
        fault = await self._fault_of(_digest(grammar), grammar)
        if fault is not None:
            raise _refusal(fault, constraint.param)
        return CompiledGrammar(grammar, constraint.is_exact, constraint.shown_ids)

    async def _fault_of(self, digest: bytes, grammar: str) -> str | None:
        if digest in self._known:
            self._known.move_to_end(digest)
            return self._known[digest]
        pending = self._pending.get(digest)
        if pending is None:
            if len(self._pending) >= MAX_PENDING:
                raise queue_full(MAX_PENDING * MOST_S / NUM_THREADS)
            pending = asyncio.get_running_loop().run_in_executor(self._threads, self._fault, grammar)
            self._pending[digest] = pending
            pending.add_done_callback(lambda done: self._landed(digest, done))
        return await asyncio.shield(pending)  # others may wait for it as well

    def _landed(self, digest: bytes, done: "asyncio.Future[str | None]") -> None:
        del self._pending[digest]
        if not done.cancelled() and done.exception() is None:
            self._remember(digest, done.result())

    def _fault(self, grammar: str) -> str | None:
        try:
            self._compiler.check(grammar)
        except GrammarError as error:
            return str(error)
        return None

    def _remember(self, digest: bytes, fault: str | None) -> None:
        self._known[digest] = None if fault is None else fault[:1000]
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)


def _digest(grammar: str) -> bytes:
    return hashlib.sha256(grammar.encode("utf-8", errors="surrogatepass")).digest()


def check_no_contradiction(request: GenerationRequest, end_ids: Collection[int]) -> None:
    """A grammar says itself where a text may end. Raises ApiError 400 where another parameter says otherwise."""
    because = "cannot be combined with a form of the answer, which says itself where the text ends."
    if request.ignore_eos:
        raise invalid_value(f"'ignore_eos' {because}", "ignore_eos")
    if request.min_tokens:
        raise invalid_value(f"'min_tokens' {because}", "min_tokens")
    allowed = request.allowed_token_ids
    if allowed is not None and not set(allowed) & set(end_ids):
        message = "'allowed_token_ids' lacks the end token, with which a text of a given form ends."
        raise invalid_value(message, "allowed_token_ids")


def _unsupported_keywords(fault: str) -> list[str]:
    if "Unknown format" in fault:
        return ["format"]
    if "oneOf constraints are not supported" in fault:
        return ["oneOf"]
    return sorted(set(re.findall(r"[A-Za-z]+", fault)) & SCHEMA_KEYWORDS) if "Unimplemented keys" in fault else []


def _refusal(fault: str, param: str) -> ApiError:
    if "too big" in fault or "too large" in fault:
        return too_large(param)
    reason = next((ours for theirs, ours in REASONS.items() if theirs in fault), None)
    if "Unimplemented keys" in fault:
        keys = _unsupported_keywords(fault)
        reason = f"it uses what is not supported ({', '.join(keys)})" if keys else "it uses keywords not supported"
    return invalid_value(f"'{param}' cannot be followed: {reason or 'it is not valid'}.", param)
