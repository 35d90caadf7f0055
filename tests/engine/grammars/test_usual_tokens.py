"""Byte pair encoding in the order of the token ids, against the tokenizer's own."""

import random

import pytest

from engine.grammars.usual_tokens import UsualTokens
from engine.types import Vocabulary
from server.tokenizer.tokenizer import load_tokenizer
from tests.support.paths import DEMO, ROOT


def split(text: str, *tokens: str) -> list[str]:
    """Split by a vocabulary of these tokens, whose ids are in this order."""
    usual = UsualTokens(Vocabulary([token.encode() for token in tokens], []))
    return [tokens[token_id] for token_id in usual.split(text.encode())]


def test_the_pair_with_the_lowest_id_is_merged_first() -> None:
    assert split("abc", "ab", "bc", "a", "b", "c") == ["ab", "c"]
    assert split("abc", "bc", "ab", "a", "b", "c") == ["a", "bc"]
    assert split("abab", "ab", "abab", "aba", "a", "b") == ["abab"]


def test_the_longest_token_is_not_taken_if_merges_do_not_lead_to_it() -> None:
    assert split("abcd", "bc", "abcd", "ab", "cd", "a", "b", "c", "d") == ["a", "bc", "d"]


def test_a_character_without_a_token_is_written_in_bytes_or_ends_the_text() -> None:
    tokens = [b"\xc3", b"\xa4", b"x", b"xx"]
    assert UsualTokens(Vocabulary(tokens, [])).split("xäxx".encode()) == [2, 0, 1, 3]
    assert UsualTokens(Vocabulary(tokens, [])).split("xü".encode()) == [2, 0]
    assert UsualTokens(Vocabulary(tokens, [])).split(b"") == []


def test_control_tokens_are_no_text() -> None:
    assert UsualTokens(Vocabulary([b"ab", b"a", b"b"], [0])).split(b"ab") == [1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_texts_get_the_tokens_of_the_tokenizer(seed: int) -> None:
    tokenizer, rng = load_tokenizer(DEMO), random.Random(seed)
    usual = UsualTokens(tokenizer.vocabulary())
    text = (ROOT / "docs/architecture.md").read_text()
    line_break = tokenizer.encode("\n", add_special_tokens=False)
    for _ in range(100):
        start = rng.randrange(len(text) - 60)
        snippet = text[start : start + rng.randint(1, 60)].strip()
        expected = tokenizer.encode("\n" + snippet, add_special_tokens=False)[len(line_break) :]
        assert usual.split(snippet.encode()) == expected
