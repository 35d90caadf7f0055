"""Compile grammars and compute token masks: the tokens that a grammar allows next.

llguidance does the parsing. This module sets its limits and makes a mask a function of the tokens generated so far, so
that preemption, chunking and other requests of a batch cannot change it. It knows neither torch nor scheduling.
"""

from collections.abc import Callable
from collections.abc import Sequence as Ids
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import cached_property, partial

import llguidance

from engine.errors import GrammarError
from engine.grammars.lookahead import ForcedText, Lookahead
from engine.grammars.panics import panics_as_errors
from engine.types import Vocabulary

# Limits are counts, not seconds: the same grammar is accepted or rejected on every machine and under any load, but for
# texts near them, which may pass with drafts (docs/speculation.md, Limits).
LIMITS = llguidance.LLParserLimits(
    max_grammar_size=100_000,  # symbols
    initial_lexer_fuel=400_000,  # about 50,000 per ms
    step_lexer_fuel=100_000,  # per mask; about 14,000 per ms
    step_max_items=6_000,  # per mask: in ambiguous grammars up to 20 ms (decision 127)
    max_lexer_states=50_000,  # 1 to 2 kB each
    verbose_errors=False,
)
# The last line of a grammar that reads a text in few ways, such as a schema: there an item costs 0.3 to 1 us.
FEW_READINGS = "// few readings\n"
LIMITS_OF_FEW_READINGS = llguidance.LLParserLimits(
    max_items_in_row=20_000,
    max_grammar_size=LIMITS.max_grammar_size,
    initial_lexer_fuel=LIMITS.initial_lexer_fuel,
    step_lexer_fuel=LIMITS.step_lexer_fuel,
    step_max_items=20_000,  # an object of 700 optional properties needs up to 19,700 (decision 128)
    max_lexer_states=LIMITS.max_lexer_states,
    verbose_errors=False,
)
SILENT = 0

RunInThread = Callable[[Callable[[], llguidance.LLMatcher]], "Future[llguidance.LLMatcher]"]
Replay = Callable[[Ids[int]], "Future[llguidance.LLMatcher]"]


class GrammarCompiler:
    """Compiler of grammars for one vocabulary. Safe to use from several threads."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, eos_token_ids: Ids[int]) -> None:
        """`vocab_size`: columns of the logits; ids beyond the vocabulary are never allowed.
        `eos_token_ids`: tokens that end a text; allowed exactly where the grammar is complete.
        """
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)

    def build(self, grammar: str, place: object = None) -> "BuiltGrammar":
        """Build a grammar and its first mask. Raises GrammarError if it is invalid, unsatisfiable or too expensive.

        `place`: what must live as long as the parser.
        """
        parser = self.parser(grammar)
        GrammarMatcher(parser).bitmask((), 0)
        return BuiltGrammar(self, grammar, parser, place)

    def matcher(self, grammar: str) -> "GrammarMatcher":
        """Return a matcher that shares nothing, at the start of its text. Raises GrammarError."""
        return GrammarMatcher(self.parser(grammar))

    def check(self, grammar: str) -> None:
        """Raise GrammarError if the grammar is invalid, unsatisfiable or too expensive."""
        self.build(grammar)

    def parser(self, grammar: str) -> llguidance.LLMatcher:
        """Return a parser of its own at the start of its text. Raises GrammarError."""
        limits = LIMITS_OF_FEW_READINGS if grammar.endswith(FEW_READINGS) else LIMITS
        parser = llguidance.LLMatcher(self._tokenizer, grammar, log_level=SILENT, limits=limits)
        if parser.is_error():
            raise GrammarError(parser.get_error())
        return parser

    def warm_up(self) -> None:
        """Build what all matchers share now, instead of for the first of them."""
        if self._eos_token_ids:
            _ = self._tokenizer

    @cached_property
    def forced(self) -> ForcedText:
        """Built on first use, by the first text with a draft."""
        return ForcedText(self._vocabulary)

    @cached_property
    def _tokenizer(self) -> llguidance.LLTokenizer:
        """Built on first use, because 32,000 tokens take about 0.1 s."""
        if not self._eos_token_ids:
            raise GrammarError("the model has no end token")
        wrapper = llguidance.TokenizerWrapper(_Tokens(self._vocabulary, self._vocab_size, self._eos_token_ids[0]))
        return llguidance.LLTokenizer(wrapper, eos_token=self._eos_token_ids)


class BuiltGrammar:
    """A built grammar. Its matchers share the lexer, because llguidance's copies do: states that one text has reached
    cost the others nothing, but count against their limit on states too.
    """

    def __init__(
        self, compiler: GrammarCompiler, grammar: str, parser: llguidance.LLMatcher, place: object = None
    ) -> None:
        self._compiler = compiler
        self._grammar = grammar
        self._parser = parser  # stays at the start of its text
        self._place = place  # among the parsers that may live (parser_places.py)

    def matcher(self, run: RunInThread) -> "GrammarMatcher":
        """Return a matcher at the start of its text. `run` starts work that is too long for a step."""
        compiler = self._compiler
        return GrammarMatcher(self._parser.deep_copy(), partial(self._start_replay, run), lambda: compiler.forced)

    def _start_replay(self, run: RunInThread, token_ids: Ids[int]) -> "Future[llguidance.LLMatcher]":
        return run(partial(self._replay, token_ids))

    def _replay(self, token_ids: Ids[int]) -> llguidance.LLMatcher:
        """Build a parser that shares nothing and take it through a text, with each mask on the way."""
        parser = self._compiler.parser(self._grammar)
        for token_id in token_ids:
            parser.compute_bitmask()
            parser.consume_tokens([token_id])
        return parser


class GrammarMatcher:
    """State of one generated text in its grammar.

    Where its parser shares a lexer, an error may be another text's doing. The text then gets a parser of its own, which
    replays it and decides: whether a text fails does not depend on other texts of its request.
    """

    def __init__(
        self,
        parser: llguidance.LLMatcher,
        replay: Replay | None = None,
        forced: Callable[[], ForcedText] | None = None,
    ) -> None:
        """`replay` returns a future parser for a text's tokens; None if the parser shares no lexer. `forced`: of the
        vocabulary; None: the text gets no drafts."""
        self._parser = parser
        self._forced = forced
        self._ahead: Lookahead | None = None  # of the present text, once it is asked for
        self._num_consumed = 0
        self._replay = replay
        self._own_parser: Future[llguidance.LLMatcher] | None = None
        self._mask: tuple[int, bytes] | None = None  # number of tokens, and the mask behind them
        self.keeps_alive: object = None  # what the queue finds the build by, while a text needs it

    def __del__(self) -> None:
        if self._own_parser is not None:
            self._own_parser.cancel()

    def prepare(self, token_ids: Ids[int], start: int) -> bool:
        """Compute the mask that bitmask() will be asked for. Return False if it takes longer than a step may: a parser
        is built in a thread; call again. Errors are kept for bitmask()."""
        if self._own_parser is None:
            with suppress(GrammarError):
                self._shared_bitmask(token_ids, start)
        return self._own_parser is None or self._own_parser.done()

    def bitmask(self, token_ids: Ids[int], start: int) -> bytes:
        """Return the mask of the tokens that may follow token_ids[start:].

        Each call must extend the tokens of the call before. Packed: token i is bit i % 8 of byte i // 8; as many bytes
        as ceil(V / 32) int32. Raises GrammarError if the tokens break the grammar, or the mask is too expensive.
        """
        mask = None if self._own_parser is not None else self._shared_bitmask(token_ids, start)
        if mask is not None:
            return mask
        assert self._own_parser is not None
        self._parser, self._own_parser = self._result_of(self._own_parser), None
        self._num_consumed = len(token_ids) - start
        return self._next_mask(token_ids, start)

    def look_ahead(self, token_ids: Ids[int], start: int) -> Lookahead | None:
        """Return the masks behind guesses that follow token_ids[start:], whose own mask prepare() has computed.

        None if guesses could change whether the text fails: their states count against the limits of the lexer. As long
        as the text has a replay, that decides.
        """
        if self._forced is None or self._replay is None or self._mask is None:
            return None
        if self._mask[0] != len(token_ids) - start:
            return None
        if self._ahead is None:
            self._ahead = Lookahead(self._parser, self._mask[1], self._forced())
        return self._ahead

    def draft_bitmask(self, draft: Ids[int]) -> bytes:
        """Return the mask behind the last text of bitmask() and these guessed tokens, which look_ahead() has found
        allowed. Packed like that of bitmask()."""
        mask = None if self._ahead is None else self._ahead.mask_behind(draft)
        assert mask is not None, "a draft is verified without its masks"
        return mask

    def wait(self, timeout_s: float) -> None:
        """Block until prepare() can return True, or the timeout has passed."""
        if self._own_parser is not None:
            wait([self._own_parser], timeout_s)

    def _shared_bitmask(self, token_ids: Ids[int], start: int) -> bytes | None:
        """Return the mask; None if an error may be another text's doing: a parser of its own is then being built."""
        try:
            return self._next_mask(token_ids, start)
        except GrammarError:
            if self._replay is None:
                raise
            self._own_parser, self._replay = self._replay(list(token_ids[start:])), None
            return None

    def _next_mask(self, token_ids: Ids[int], start: int) -> bytes:
        """Return the parser's mask, kept from an earlier call if it was for the same tokens. Raises GrammarError."""
        num_tokens = len(token_ids) - start
        if self._mask is not None and self._mask[0] == num_tokens:
            return self._mask[1]
        self._ahead = None
        with panics_as_errors():
            for token_id in token_ids[start + self._num_consumed :]:  # all at once, two end tokens pass
                self._parser.consume_tokens([token_id])
            self._num_consumed = num_tokens
            mask = self._parser.compute_bitmask()
        if self._parser.is_error():  # the mask would then be the mask of a finished text
            raise GrammarError(self._parser.get_error())
        self._mask = num_tokens, mask
        return mask

    def _result_of(self, parser: "Future[llguidance.LLMatcher]") -> llguidance.LLMatcher:
        """Return the parser once it is built. Raises GrammarError if it cannot be."""
        with panics_as_errors():
            return parser.result()


class _Tokens:
    """Adapter of a Vocabulary to the interface that llguidance.TokenizerWrapper expects."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id
        self.bos_token_id = None
        self.tokens = vocabulary.tokens + [b""] * (vocab_size - len(vocabulary.tokens))
        self.special_token_ids = vocabulary.special_ids

    def __call__(self, text: str | bytes) -> list[int]:
        """Never called: grammars use the option `no_forcing`, so that the model chooses each token."""
        raise AssertionError("llguidance tokenized a text, although the grammar sets no_forcing")
