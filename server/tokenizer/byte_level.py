"""Encoder of plain text for byte-level vocabularies, such as those of Llama 3 and Mistral Nemo.

A piece stands for bytes, each written as one visible character: GPT-2's alphabet. The package `tokenizers` splits a
text into words and merges their bytes.
"""

from collections.abc import Iterable
from pathlib import Path

from server.tokenizer.config_files import Json, TokenizerError, check_token_id, name_damage
from server.tokenizer.tokenizer_json import (
    Normalizer,
    added_tokens,
    build,
    control_tokens_around,
    encoded,
    pieces_by_id,
)

# Bytes that are written as the character of the same number. The others get the characters from 256 on, in their order.
_VISIBLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _VISIBLE]
CHARACTERS = {byte: chr(byte) for byte in _VISIBLE} | {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}
_BYTES = {character: byte for byte, character in CHARACTERS.items()}


class ByteLevelEncoder:
    """Encoder for a tokenizer.json whose pieces are byte pairs in GPT-2's alphabet.

    Added tokens are no pieces here, so that no plain text is encoded as one.
    """

    is_byte_level = True
    has_dummy_prefix = False
    prefixes_each_text: bool | None = None
    unk_id: int | None = None

    def __init__(self, path: Path, description: Json) -> None:
        """`description`: the content of a tokenizer.json. Raises TokenizerError, which names the file `path`."""
        with name_damage(path):
            self._load(path, description)

    def _load(self, path: Path, description: Json) -> None:
        model = description["model"]
        assert isinstance(model, dict)
        vocabulary = {piece: check_token_id(path, token_id) for piece, token_id in model["vocab"].items()}
        self.added_tokens = added_tokens(path, description)
        self.normalizer: Normalizer = "none" if description.get("normalizer") is None else "other"
        added_ids = {token.id for token in self.added_tokens}
        # A piece that others are merged from has to stay, although it is an added token as well.
        merged = _merged_pieces(model["merges"]) if added_ids & set(vocabulary.values()) else set()
        known = {piece: i for piece, i in vocabulary.items() if i not in added_ids or piece in merged}
        missing = sum(character not in known for character in CHARACTERS.values())
        if missing:
            raise TokenizerError(f"{path}: {missing} of the 256 bytes have no token; byte-level vocabularies need all")
        plain = description | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        self._tokenizer = build(plain | {"model": model | {"vocab": known, "dropout": None}}, path)
        self.pieces = pieces_by_id(path, {piece: i for piece, i in known.items() if i not in added_ids})
        self.control_ids = frozenset(token.id for token in self.added_tokens if token.is_special)
        ids = vocabulary | {token.text: token.id for token in self.added_tokens}
        first, last = control_tokens_around(description)
        self.adds_bos, self.adds_eos = first is not None, last is not None
        self.bos_id = None if first is None else ids.get(first)
        self.eos_id = None if last is None else ids.get(last)

    def encode(self, text: str, *, with_prefix: bool) -> list[int]:
        """Raises ApiError if the file's word rule gives up on the text: ten million steps at one place."""
        del with_prefix  # there is none
        return encoded(self._tokenizer, text)

    def bytes_of_piece(self, piece: str) -> bytes:
        try:
            return bytes(map(_BYTES.__getitem__, piece))
        except KeyError:  # as the package decodes a piece with another character
            return piece.encode("utf-8")


def is_byte_level(description: Json) -> bool:
    """Return whether a tokenizer.json merges byte pairs in GPT-2's alphabet."""
    model, steps = description.get("model"), description.get("pre_tokenizer")
    if not isinstance(model, dict) or model.get("byte_fallback") or not isinstance(steps, dict):
        return False
    has_merges = isinstance(model.get("vocab"), dict) and isinstance(model.get("merges"), list)
    listed = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in listed if isinstance(step, dict)] if isinstance(listed, list) else []
    return has_merges and "ByteLevel" in kinds


def _merged_pieces(merges: Iterable[str | list[str]]) -> set[str]:
    """Return all pieces that merges name or make. A merge is "a b", or in newer files ["a", "b"]."""
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
    return {piece for pair in pairs for piece in (*pair, "".join(pair))}
