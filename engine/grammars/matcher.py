"""Compile grammars and compute token masks: the tokens that a grammar allows next.

llguidance does the parsing. This module sets its limits and makes a mask a function of the tokens generated so far, so
that preemption, chunking and other requests of a batch cannot change it. It knows neither torch nor scheduling.
"""

from collections.abc import Sequence
from functools import cached_property

import llguidance

from engine.errors import GrammarError
from engine.types import Vocabulary

# Limits are counts, not seconds: the same grammar is accepted or rejected on every machine and under any load.
LIMITS = llguidance.LLParserLimits(
    max_grammar_size=100_000,  # symbols
    initial_lexer_fuel=400_000,  # about 50,000 per ms
    step_lexer_fuel=100_000,  # per mask; about 14,000 per ms
    step_max_items=50_000,  # per mask; about 20,000 per ms
    max_lexer_states=50_000,  # 1 to 2 kB each
    verbose_errors=False,
)
SILENT = 0


class GrammarCompiler:
    """Compiler of grammars for one vocabulary. Safe to use from several threads."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """`vocab_size`: columns of the logits; ids beyond the vocabulary are never allowed.
        `eos_token_ids`: tokens that end a text; allowed exactly where the grammar is complete.
        """
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)

    def matcher(self, grammar: str) -> "GrammarMatcher":
        """Return a matcher at the start of its text. Raises GrammarError if the grammar is invalid or too expensive."""
        parser = llguidance.LLMatcher(self._tokenizer, grammar, log_level=SILENT, limits=LIMITS)
        if parser.is_error():
            raise GrammarError(parser.get_error())
        return GrammarMatcher(parser)

    def check(self, grammar: str) -> None:
        """Raise GrammarError if the grammar is invalid, unsatisfiable or too expensive."""
        self.matcher(grammar).bitmask((), 0)

    def warm_up(self) -> None:
        """Build what all matchers share now, instead of for the first of them."""
        if self._eos_token_ids:
            _ = self._tokenizer

    @cached_property
    def _tokenizer(self) -> llguidance.LLTokenizer:
        """Built on first use, because 32,000 tokens take about 0.1 s."""
        if not self._eos_token_ids:
            raise GrammarError("the model has no end token")
        wrapper = llguidance.TokenizerWrapper(_Tokens(self._vocabulary, self._vocab_size, self._eos_token_ids[0]))
        return llguidance.LLTokenizer(wrapper, eos_token=self._eos_token_ids)


class GrammarMatcher:
    """State of one generated text in its grammar."""

    def __init__(self, parser: llguidance.LLMatcher) -> None:
        self._parser = parser
        self._num_consumed = 0

    def bitmask(self, token_ids: Sequence[int], start: int) -> bytes:
        """Return the mask of the tokens that may follow token_ids[start:].

        Each call must extend the tokens of the call before. Packed: token i is bit i % 8 of byte i // 8; as many bytes
        as ceil(V / 32) int32. Raises GrammarError if the tokens break the grammar, or the mask is too expensive.
        """
        try:
            mask = self._mask(token_ids[start + self._num_consumed :])
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in the library is not an Exception
            raise GrammarError(str(error)) from error
        if self._parser.is_error():  # the mask would then be the mask of a finished text
            raise GrammarError(self._parser.get_error())
        return mask

    def _mask(self, fresh: Sequence[int]) -> bytes:
        if fresh:
            self._parser.consume_tokens(list(fresh))
            self._num_consumed += len(fresh)
        return self._parser.compute_bitmask()


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
