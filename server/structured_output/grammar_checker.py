"""Check grammars before their requests are queued, so that an unusable one is a 400 and not an engine error."""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Collection, Sequence

from server.errors import check_not_possible, invalid_value, queue_full
from server.sandbox.errors import SandboxError, SandboxFull, is_jobs_fault
from server.sandbox.job import MAX_WORKERS, Job, Limits
from server.sandbox.pool import Sandbox
from server.schemas.generation import GenerationRequest
from server.structured_output.constraints import CompiledGrammar, Constraint, constraint_of
from server.structured_output.grammar_check_job import Verdict, check_grammar, make_compiler
from server.structured_output.refusals import ignored_keywords, refusal
from server.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger("smoe.sandbox")

COMPILER = "grammar compiler"  # name of the prepared object in the sandbox
BEYOND_THE_SANDBOX = "limit of the sandbox"  # the fault of a grammar that the sandbox had to end
MAX_REMEMBERED = 4096
MAX_PENDING = 64  # grammars in a check or waiting for one
MAX_CHECK_S = 0.3  # for a grammar at the limits


class GrammarChecker:
    """Checker of grammars in the sandbox, with the same limits as in the engine.

    Those limits are counts of work; the sandbox's, on CPU time and memory, are behind them, for what the counts miss.
    Results are cached, a grammar whose check is running is not checked a second time, and a grammar is refused with 429
    while MAX_PENDING others wait.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sandbox: Sandbox,
        limits: Limits | None = None,
        *,
        vocab_size: int | None = None,
        end_ids: Sequence[int] | None = None,
    ) -> None:
        """`limits`: of one check; None: those of the sandbox. `vocab_size`, `end_ids`: the engine's size of the
        vocabulary and tokens that end an answer; None: the tokenizer's."""
        self._limits = limits
        self._tokenizer = tokenizer
        self._vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        self._end_ids = tuple(tokenizer.eos_ids if end_ids is None else end_ids)
        self._sandbox = sandbox
        self._preparation: asyncio.Task[None] | None = None
        self._known: OrderedDict[bytes, str | None] = OrderedDict()  # digest of a grammar -> its fault
        self._pending: dict[bytes, asyncio.Future[str | None]] = {}  # digest of a grammar -> its running check

    async def prepare(self) -> None:
        """Build in the sandbox what all checks share. Checks wait for it; call it early, so that none has to."""
        if self._preparation is None or (self._preparation.done() and self._preparation.exception() is not None):
            self._preparation = asyncio.get_running_loop().create_task(self._prepare())
        await asyncio.shield(self._preparation)

    async def _prepare(self) -> None:
        vocabulary = self._tokenizer.vocabulary()
        args = vocabulary.tokens, vocabulary.special_ids, self._vocab_size, list(self._end_ids)
        await self._sandbox.prepare(COMPILER, make_compiler, *args)

    async def compile(
        self, request: GenerationRequest, constraints: Sequence[Constraint] = (), tenant: int = 0
    ) -> CompiledGrammar | None:
        """Check the constraints and return the answer's grammar, ready for the engine; None if any text is allowed.

        `constraints`: used in place of the request's own response format; the last is that of the whole answer.
        `tenant`: who pays for the checks. Raises ApiError 400 for a constraint that cannot be followed or that another
        parameter contradicts, 429 while too many checks wait, 503 if the check's process was ended from outside.
        """
        if not constraints:
            constraint = await self._own_constraint(request)
            constraints = [constraint] if constraint else []
        compiled: CompiledGrammar | None = None
        for constraint in constraints:
            compiled = await self._compile_one(constraint, tenant)
        if compiled is not None:
            check_no_contradiction(request, self._end_ids)
        return compiled

    async def unsupported_keywords(self, constraint: Constraint, tenant: int = 0) -> list[str]:
        """Return the schema keywords that no grammar can express; [] if another fault of the schema is found first."""
        fault = await self._find_fault(constraint.grammar, constraint.param, tenant)
        return [] if fault is None else ignored_keywords(fault, constraint.kept)

    async def _own_constraint(self, request: GenerationRequest) -> Constraint | None:
        """Translate the response format in a thread: serializing a schema of a megabyte takes long."""
        if request.response_format is None and request.outputs[0] is None:
            return None
        return await asyncio.to_thread(constraint_of, request)

    async def _compile_one(self, constraint: Constraint, tenant: int) -> CompiledGrammar:
        grammar = constraint.grammar
        fault = await self._find_fault(grammar, constraint.param, tenant)
        if fault is not None:
            raise refusal(fault, constraint)
        return CompiledGrammar(grammar, constraint.is_exact, constraint.shown_ids)

    async def _find_fault(self, grammar: str, param: str, tenant: int) -> str | None:
        digest = _digest(grammar)
        if digest in self._known:
            self._known.move_to_end(digest)
            return self._known[digest]
        pending = self._pending.get(digest)
        if pending is None:
            if len(self._pending) >= MAX_PENDING:
                raise queue_full(MAX_PENDING * MAX_CHECK_S / MAX_WORKERS)
            pending = asyncio.get_running_loop().create_task(self._check(grammar, tenant))
            self._pending[digest] = pending
            pending.add_done_callback(lambda done: self._on_checked(digest, done))
        try:
            return await asyncio.shield(pending)  # other requests may wait for the same check
        except SandboxFull:
            raise queue_full(MAX_PENDING * MAX_CHECK_S / MAX_WORKERS) from None
        except SandboxError:
            raise check_not_possible(param) from None

    def _on_checked(self, digest: bytes, done: "asyncio.Future[str | None]") -> None:
        del self._pending[digest]
        if not done.cancelled() and done.exception() is None:
            self._remember(digest, done.result())

    async def _check(self, grammar: str, tenant: int) -> str | None:
        """Return the grammar's fault. Raises SandboxError if the check itself failed, which proves no fault."""
        await self.prepare()
        job = Job(check_grammar, (grammar,), Verdict, COMPILER, self._limits)
        try:
            return (await self._sandbox.run(job, tenant=tenant)).fault
        except SandboxError as end:
            if not is_jobs_fault(end):
                raise
            logger.warning("a grammar was refused after its check in the sandbox: %s", end)
            return BEYOND_THE_SANDBOX

    def _remember(self, digest: bytes, fault: str | None) -> None:
        self._known[digest] = fault
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)


def _digest(grammar: str) -> bytes:
    return hashlib.sha256(grammar.encode("utf-8", errors="surrogatepass")).digest()


def check_no_contradiction(request: GenerationRequest, end_ids: Collection[int]) -> None:
    """Raise ApiError 400 if another parameter contradicts the grammar, which defines where the text may end."""
    because = "cannot be combined with a response format, which defines where the text ends."
    if request.ignore_eos:
        raise invalid_value(f"'ignore_eos' {because}", "ignore_eos")
    if request.min_tokens:
        raise invalid_value(f"'min_tokens' {because}", "min_tokens")
    allowed = request.allowed_token_ids
    if allowed is not None and not set(allowed) & set(end_ids):
        message = "'allowed_token_ids' lacks the end token, which a text with a response format ends with."
        raise invalid_value(message, "allowed_token_ids")
