"""Reading the corpus: strings in R's format, and novels cut into chapters."""

import struct

import pytest

from model.demo.training.corpus import CHARSXP, STRSXP, _chapters, _strings


def _serialized(strings: list[bytes], version: int) -> bytes:
    """Write a character vector in R's XDR format, by the rules of R Internals, section 1.8."""
    head = b"X\n" + struct.pack(">III", version, 0x040202, 0x020300)
    if version == 3:
        head += struct.pack(">I", 5) + b"UTF-8"
    entries = b"".join(struct.pack(">Ii", 0x00040000 | CHARSXP, len(text)) + text for text in strings)
    return head + struct.pack(">II", STRSXP, len(strings)) + entries


@pytest.mark.parametrize("version", [2, 3])
def test_the_strings_of_a_serialized_vector_are_read(version: int) -> None:
    assert list(_strings(_serialized([b"one", b"", "zw\u00f6lf".encode()], version))) == ["one", "", "zw\u00f6lf"]


def test_other_r_values_are_refused() -> None:
    content = bytearray(_serialized([b"one"], 2))
    content[17] = 13  # an integer vector
    with pytest.raises(ValueError, match="R type 13"):
        list(_strings(bytes(content)))


def test_a_novel_is_cut_at_its_chapters_and_paragraphs_become_lines() -> None:
    text = "Title\n\nby J\n\nChapter 1\n\nA first\nline,\n  broken.\n\n\n\nAnother.\n\nCHAPTER II\n\nToo short."
    assert _chapters(text.split("\n")) == ["Chapter 1\n\nA first line, broken.\n\nAnother."]
