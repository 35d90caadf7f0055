"""Grammars over tokens: which token may come next in a text that has to have a given form.

llguidance does the parsing. Here are its limits, and a matcher that is a function of the tokens generated so far, so
that preemption, chunking and batch mates cannot shift it. Knows neither torch nor scheduling.
"""

from collections.abc import Sequence
from functools import cached_property

import llguidance

from engine.errors import GrammarError
from engine.types import Vocabulary

# Work is bounded by counts and not by a clock: a grammar gets the same answer on every machine and under any load.
LIMITS = llguidance.LLParserLimits(
    max_grammar_size=100_000,  # symbols
    initial_lexer_fuel=400_000,  # about 50,000 per ms
    step_lexer_fuel=100_000,  # for one mask; about 14,000 per ms
    step_max_items=50_000,  # likewise; about 20,000 per ms
    max_lexer_states=50_000,  # 1 to 2 kB each
    verbose_errors=False,
)
SILENT = 0


class GrammarCompiler:
    """Makes matchers for one vocabulary. Safe to use from several threads.

    `vocab_size`: columns of the logits; the ids behind the vocabulary's own stand for nothing. `eos_token_ids`: what
    ends a text, allowed wherever the grammar is complete and nowhere else.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)

    def matcher(self, grammar: str) -> "GrammarMatcher":
        """A matcher at the start of its text. Raises GrammarError for a grammar that is none, or beyond the limits."""
        parser = llguidance.LLMatcher(self._tokenizer, grammar, log_level=SILENT, limits=LIMITS)
        if parser.is_error():
            raise GrammarError(parser.get_error())
        return GrammarMatcher(parser)

    def check(self, grammar: str) -> None:
        """Raises GrammarError unless the grammar is one, within the limits, that some text fulfils."""
        self.matcher(grammar).bitmask((), 0)

    @cached_property
    def _tokenizer(self) -> llguidance.LLTokenizer:
        """Takes some 0.1 s for 32,000 tokens, so it is made when first needed."""
        if not self._eos_token_ids:
            raise GrammarError("the model has no end token")
        wrapper = llguidance.TokenizerWrapper(_Tokens(self._vocabulary, self._vocab_size, self._eos_token_ids[0]))
        return llguidance.LLTokenizer(wrapper, eos_token=self._eos_token_ids)


class GrammarMatcher:
    """One text's place in its grammar."""

    def __init__(self, parser: llguidance.LLMatcher) -> None:
        self._parser = parser
        self._num_consumed = 0

    def bitmask(self, token_ids: Sequence[int], start: int) -> bytes:
        """The tokens that may follow token_ids[start:], which must begin with what was passed before.

        Packed: bit i % 8 of byte i // 8 is token i's; as long as ceil(V / 32) int32. Raises GrammarError where the
        tokens break the grammar, or the step goes beyond the limits.
        """
        try:
            mask = self._mask(token_ids[start + self._num_consumed :])
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the library is no Exception
            raise GrammarError(str(error)) from error
        if self._parser.is_error():  # the mask would then be that of a finished text
            raise GrammarError(self._parser.get_error())
        return mask

    def _mask(self, fresh: Sequence[int]) -> bytes:
        if fresh:
            self._parser.consume_tokens(list(fresh))
            self._num_consumed += len(fresh)
        return self._parser.compute_bitmask()


class _Tokens:
    """The vocabulary as llguidance asks for it."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id
        self.bos_token_id = None
        self.tokens = vocabulary.tokens + [b""] * (vocab_size - len(vocabulary.tokens))
        self.special_token_ids = vocabulary.special_ids

    def __call__(self, text: str | bytes) -> list[int]:
        """Never asked for: grammars come with `no_forcing`, so that each token is the model's own choice."""
        raise AssertionError("a grammar asked for the tokens of a text")
