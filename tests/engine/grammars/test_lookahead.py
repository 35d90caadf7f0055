"""Masks behind guesses are those of a matcher that has the guesses as its text; forced text is what a schema fixes."""

import json
import random
from concurrent.futures import Future
from typing import Any

import llguidance
import pytest

from engine.errors import GrammarError
from engine.grammars import matcher as matcher_module
from engine.grammars.lookahead import Lookahead
from engine.grammars.matcher import GrammarCompiler, GrammarMatcher
from tests.support.speculation.drafted_grammars import END, VOCAB, VOCABULARY, random_grammar, serialized, text_of

COMPILER = GrammarCompiler(VOCABULARY, VOCAB, (END,))


def always() -> bool:
    return True


def not_needed(work: Any) -> "Future[Any]":
    raise AssertionError("a parser is built again")


def matcher_of(grammar: str) -> GrammarMatcher:
    return COMPILER.build(grammar).matcher(not_needed)


def ahead_of(matcher: GrammarMatcher, token_ids: list[int]) -> Lookahead:
    assert matcher.prepare(token_ids, 0)
    ahead = matcher.look_ahead(token_ids, 0)
    assert ahead is not None
    return ahead


def bits(mask: bytes) -> list[int]:
    return [i for i in range(8 * len(mask)) if mask[i // 8] >> i % 8 & 1]


def masks_along(grammar: str, token_ids: list[int]) -> list[bytes]:
    """Return the masks behind each start of a text, by a matcher of its own, up to a token that is forbidden."""
    matcher, masks = COMPILER.matcher(grammar), list[bytes]()
    for count in range(len(token_ids) + 1):
        try:
            masks.append(matcher.bitmask(token_ids[:count], 0))
        except GrammarError:
            break
    return masks


def extended(rng: random.Random, grammar: str, text: list[int], guess: list[int]) -> list[int]:
    """Return a guess of up to six tokens that begins with the given one; the last may be forbidden."""
    matcher = COMPILER.matcher(grammar)
    while len(guess) < 5 and (allowed := set(bits(matcher.bitmask(text + guess, 0))) - {END}):
        guess = [*guess, rng.choice(sorted(allowed))]
    return [*guess, rng.randrange(VOCAB)] if rng.random() < 0.4 else guess


@pytest.mark.parametrize("seed", range(8))
def test_masks_behind_guesses_are_those_of_a_text_with_the_guesses(seed: int) -> None:
    """Guesses go on with those before, leave them anywhere, and end with forbidden tokens; then the text goes on."""
    rng = random.Random(seed)
    grammar = random_grammar(rng)
    matcher, text = matcher_of(grammar), list[int]()
    num_forbidden = 0
    for _ in range(8):
        ahead, guess = ahead_of(matcher, text), list[int]()
        for _ in range(4):
            known = masks_along(grammar, text + guess)[len(text) :]
            guess = extended(rng, grammar, text, guess[: rng.randint(0, min(len(guess), len(known) - 1))])
            masks = masks_along(grammar, text + guess)[len(text) :]
            num_forbidden += len(masks) <= len(guess)
            for length in rng.sample(range(len(guess) + 1), k=min(3, len(guess) + 1)):
                assert ahead.mask_behind(guess[:length]) == (masks[length] if length < len(masks) else None)
            assert ahead.num_allowed(guess) == len(masks) - 1
        allowed = set(bits(matcher.bitmask(text, 0))) - {END}
        if not allowed:
            break
        text.append(rng.choice(sorted(allowed)))
    assert num_forbidden and text


def schema(properties: dict[str, Any]) -> str:
    options = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
    closed = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return serialized(f"start: %json {json.dumps({**closed, 'x-guidance': options})}")


WORD = {"type": "string", "pattern": "^[a-z]{1,5}$"}


def test_the_names_of_a_closed_object_are_forced_text() -> None:
    matcher = matcher_of(schema({"city": WORD, "is_open": {"type": "boolean"}}))
    forced = ahead_of(matcher, []).forced_tokens(16, always)
    assert text_of(forced) == '{"city":"'
    assert forced == list(COMPILER.forced.split(b'{"city":"'))
    text = [*forced, VOCABULARY.tokens.index(b"na"), VOCABULARY.tokens.index(b'"')]
    assert text_of(ahead_of(matcher, text).forced_tokens(16, always)) == ',"is_open":'


def test_where_the_text_has_alternatives_or_may_end_nothing_is_forced() -> None:
    assert ahead_of(matcher_of(serialized("start: /(name|unit)/")), []).forced_tokens(16, always) == []
    matcher = matcher_of(serialized("start: /name(_open)?/"))
    name = VOCABULARY.tokens.index(b"name")
    assert ahead_of(matcher, []).forced_tokens(16, always) == [name]
    assert ahead_of(matcher, [name]).forced_tokens(16, always) == []


def test_a_long_forced_text_is_cut_between_usual_tokens() -> None:
    matcher = matcher_of(serialized('start: "' + "count" * 40 + '"'))
    count = VOCABULARY.tokens.index(b"count")
    assert ahead_of(matcher, []).forced_tokens(5, always) == [count] * 5
    assert set(ahead_of(matcher, []).forced_tokens(100, always)) == {count}
    assert ahead_of(matcher, []).forced_tokens(100, lambda: False) == []


def test_a_guess_beyond_the_limits_is_cut_and_the_text_decides_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guess reaches too many states of the lexer. The text, which takes another way, gets a parser of its own."""
    limits = llguidance.LLParserLimits(max_lexer_states=60, step_lexer_fuel=10**9, initial_lexer_fuel=10**9)
    monkeypatch.setattr(matcher_module, "LIMITS", limits)
    grammar = serialized(r"start: /(a|b){1,3}c|([a-z]{1,9}(a|b)){1,40}x/")
    built = COMPILER.build(grammar)
    replayed: list[Any] = []

    def run(work: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(work())
        replayed.append(future)
        return future

    matcher, rng = built.matcher(run), random.Random(0)
    ahead = ahead_of(matcher, [])
    guess: list[int] = []
    while (mask := ahead.mask_behind(guess)) is not None and len(guess) < 200:
        guess.append(rng.choice(bits(mask)))
    assert len(guess) < 200, "the limit was not reached"
    text = [VOCABULARY.tokens.index(b"a")] * 2
    for count, expected in enumerate(masks_along(grammar, text)):
        assert matcher.bitmask(text[:count], 0) == expected
    if replayed:
        assert matcher.look_ahead(text, 0) is None


class PanickingParser:
    """A parser whose copies panic."""

    def deep_copy(self) -> "PanickingParser":
        return self

    def consume_tokens(self, token_ids: list[int]) -> bool:
        raise BaseException("a panic")

    def validate_tokens(self, token_ids: list[int]) -> int:
        raise BaseException("a panic")


def test_a_panic_behind_a_guess_is_a_guess_less() -> None:
    parser: Any = PanickingParser()
    ahead = Lookahead(parser, b"\xff" * 16, COMPILER.forced)
    assert ahead.mask_behind([]) == b"\xff" * 16
    assert ahead.mask_behind([5]) is None and ahead.num_allowed([5]) == 0


def test_a_matcher_without_a_prepared_mask_or_a_replay_looks_at_nothing() -> None:
    matcher = matcher_of(schema({"city": WORD}))
    assert matcher.look_ahead([], 0) is None
    assert matcher.prepare([], 0) and matcher.look_ahead([], 0) is not None
    assert matcher.look_ahead([5], 0) is None
    alone = COMPILER.matcher(schema({"city": WORD}))
    assert alone.prepare([], 0) and alone.look_ahead([], 0) is None
