"""server/tokenizer/token_table.py: pieces and added tokens by id, and patterns that match the longest spelling."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.tokenizer.added_tokens import any_of_pattern
from server.tokenizer.config_files import AddedToken, TokenizerError, TokenizerSettings, read_settings
from server.tokenizer.encoders import SpacedPieces
from server.tokenizer.token_table import TokenTable

WORDS = st.text(alphabet="ab.[", max_size=5)


class SmallEncoder(SpacedPieces):
    """Vocabulary of six pieces; encodes nothing."""

    pieces = ["<unk>", "<s>", "</s>", "<0x41>", "\u2581a", "b"]  # noqa: RUF012 (the protocol's attribute)
    control_ids = frozenset({1, 2})
    bos_id, eos_id, unk_id = 1, 2, 0
    has_dummy_prefix = True

    def encode(self, text: str, *, with_prefix: bool) -> list[int]:
        raise AssertionError(f"encoded {text!r} ({with_prefix=})")


@pytest.fixture
def no_settings(tmp_path: Path) -> TokenizerSettings:
    return read_settings(tmp_path)


def test_pieces_have_their_bytes_and_control_tokens_add_none_to_a_text(no_settings: TokenizerSettings) -> None:
    table = TokenTable(SmallEncoder(), no_settings)
    assert table.raw_bytes == [b"<unk>", b"<s>", b"</s>", b"A", b" a", b"b"]
    assert table.text_bytes == [b"", b"", b"", b"A", b" a", b"b"]
    assert table.special_ids == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert [i for i in range(-1, 7) if table.starts_with_space(i)] == [4]


def test_an_added_token_renames_a_piece_or_lies_behind_the_pieces(no_settings: TokenizerSettings) -> None:
    added = (AddedToken(5, "<call>", True), AddedToken(8, "\u2581plain", False))
    table = TokenTable(SmallEncoder(), no_settings, added)
    assert table.spellings[5:] == ["<call>", "", "", "\u2581plain"]
    assert table.special_ids["<call>"] == 5
    assert list(table.plain_added.split("a\u2581plain b")) == [("a", 8), (" b", None)]
    assert table.text_bytes[5:] == [b"", b"", b"", "\u2581plain".encode()]
    assert not table.starts_with_space(8)


def test_the_files_name_the_end_token_and_may_list_more(no_settings: TokenizerSettings) -> None:
    settings = replace(no_settings, eos_token="b", special_tokens=frozenset({"b"}), eos_ids=(2, 5, 3))
    assert TokenTable(SmallEncoder(), settings).eos_ids == (5, 2, 3)
    assert TokenTable(SmallEncoder(), no_settings).eos_ids == (2,)
    chatml = (AddedToken(6, "<|im_start|>", True), AddedToken(7, "<|im_end|>", True))
    assert TokenTable(SmallEncoder(), no_settings, chatml).eos_ids == (2, 7)
    table = TokenTable(SmallEncoder(), no_settings, tuple(replace(token, is_special=False) for token in chatml))
    assert table.eos_ids == (2, 7) and table.text_bytes[6:] == [b"", b""], "added as plain text by mistake"


def test_an_id_far_behind_the_pieces_is_refused(no_settings: TokenizerSettings) -> None:
    with pytest.raises(TokenizerError, match=r"99999999999, far beyond its 6 pieces"):
        TokenTable(SmallEncoder(), no_settings, (AddedToken(99999999999, "x", False),))


@given(words=st.sets(WORDS, max_size=6), text=st.text(alphabet="ab.[", max_size=12))
def test_the_pattern_matches_the_longest_word_at_the_first_place_that_has_one(words: set[str], text: str) -> None:
    starts = [(i, [word for word in words if word and text.startswith(word, i)]) for i in range(len(text))]
    expected = next(((i, max(found, key=len)) for i, found in starts if found), None)
    match = any_of_pattern(words).search(text)
    assert (None if match is None else (match.start(), match.group())) == expected
