"""Encoders of plain text for vocabularies of SentencePiece, in both kinds of tokenizer files.

No encoder treats a spelling as a control token. Those of byte-level vocabularies: byte_level.py.
"""

import json
import re
from pathlib import Path
from typing import Protocol

import sentencepiece

from server.errors import ApiError
from server.tokenizer.config_files import (
    MAX_PIECE_CHARS,
    Json,
    TokenizerError,
    check_text,
    name_damage,
    read_file,
)
from server.tokenizer.tokenizer_json import (
    Normalizer,
    added_tokens,
    build,
    control_tokens_around,
    encoded,
    ids_of,
    pieces_by_id,
)

# Protobuf merges a message into the one in front of it: this sets ModelProto.normalizer_spec.add_dummy_prefix to false.
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
SPACE = "\u2581"
_PREPEND: Json = {"type": "Prepend", "prepend": SPACE}
_MARK_SPACES: Json = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
# Pre-tokenizers of the type Metaspace put no space in front of a text that has one, unless the normalizer doubles it.
_DOUBLE_FIRST: Json = {"type": "Replace", "pattern": {"Regex": rf"\A{SPACE}"}, "content": 2 * SPACE}
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class TextEncoder(Protocol):
    """Pieces of a tokenizer file, and the encoding of plain text into them."""

    pieces: list[str]  # by id
    control_ids: frozenset[int]
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    has_dummy_prefix: bool  # text is encoded as if it had a space in front
    # The file puts that space in front of each text between control tokens, or of the first at most. None: the
    # checkpoint's setting `legacy` decides.
    prefixes_each_text: bool | None
    adds_bos: bool  # the file puts the start token in front of a text
    adds_eos: bool  # the file puts the end token behind a text
    normalizer: Normalizer

    @property
    def is_byte_level(self) -> bool:
        """True if pieces are bytes in GPT-2's alphabet; else spaces are written as U+2581, single bytes as <0xE2>."""
        ...

    def bytes_of_piece(self, piece: str) -> bytes:
        """Return the bytes of a text that a piece stands for."""
        ...

    def encode(self, text: str, *, with_prefix: bool) -> list[int]:
        """Encode plain text. `with_prefix`: add the leading space, if the model has that rule.

        Raises ApiError if the file's rules give up on the text.
        """
        ...


class SpacedPieces:
    """Pieces as SentencePiece writes them."""

    is_byte_level = False
    normalizer: Normalizer = "none"
    prefixes_each_text: bool | None = None
    adds_bos = True  # unless tokenizer_config.json says otherwise, as in LlamaTokenizer

    def bytes_of_piece(self, piece: str) -> bytes:
        byte = _BYTE_PIECE.fullmatch(piece)
        return bytes.fromhex(byte.group(1)) if byte else piece.replace(SPACE, " ").encode("utf-8")


class SentencePieceEncoder(SpacedPieces):
    """Encoder for a SentencePiece model file (tokenizer.model, tokenizer.model.v3)."""

    def __init__(self, path: Path, model: bytes | None = None) -> None:
        """`model`: the serialized model, if it is not the content of `path`. Raises TokenizerError, which names the
        file."""
        with name_damage(path):
            self._load(path, (read_file(path) or b"") if model is None else model)

    def _load(self, path: Path, model: bytes) -> None:
        self._prefixes_spaces: bool | None = None  # a text that begins with a space; None: as any other
        self._with_prefix = _load_model(model, path)
        self._without_prefix = _load_model(model + NO_DUMMY_PREFIX, path)
        processor = self._with_prefix
        ids = ids_of(path, processor.vocab_size())
        self.pieces = [check_text(path, processor.id_to_piece(i), MAX_PIECE_CHARS) for i in ids]
        self.control_ids = frozenset(i for i in ids if processor.is_control(i))
        self.bos_id = _id_or_none(processor.bos_id())
        self.eos_id = _id_or_none(processor.eos_id())
        self.unk_id = _id_or_none(processor.unk_id())
        self.has_dummy_prefix = processor.encode("a") != self._without_prefix.encode("a")
        self.adds_eos = False

    def take_rules(self, description: Json) -> None:
        """Follow the rules of a tokenizer.json beside the model file, as transformers does."""
        self.prefixes_each_text = _prefixes_each_text(description)
        if _normalizer(description) == "spaces":
            self.normalizer = "spaces"
        if _metaspaces(description):
            self._prefixes_spaces = _DOUBLE_FIRST in _normalizers(description)

    def encode(self, text: str, *, with_prefix: bool) -> list[int]:
        if self._prefixes_spaces is not None and text.startswith((" ", SPACE)):
            with_prefix = self._prefixes_spaces
        processor = self._with_prefix if with_prefix else self._without_prefix
        ids: list[int] = processor.encode(text)
        return ids


class HfTokenizerEncoder(SpacedPieces):
    """Encoder for a tokenizer.json of the same kind: byte-pair pieces with byte fallback."""

    def __init__(self, path: Path, description: Json) -> None:
        """`description`: the content of the file `path`. Raises TokenizerError, which names the file."""
        with name_damage(path):
            self._load(path, description)

    def _load(self, path: Path, description: Json) -> None:
        model = description.get("model")
        if not isinstance(model, dict) or not has_byte_fallback(description):
            raise TokenizerError(
                f"{path}: only byte-pair vocabularies are supported, byte-level ones and those with byte fallback"
            )
        self.added_tokens = added_tokens(path, description)
        self.normalizer = _normalizer(description)
        plain = description | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        self._with_prefix = build(plain, path)
        self._without_prefix = build(_without_prefix(plain), path)
        vocabulary = self._with_prefix.get_vocab()
        self.pieces = pieces_by_id(path, vocabulary)
        self.control_ids: frozenset[int] = frozenset(token.id for token in self.added_tokens if token.is_special)
        self.bos_id = vocabulary.get("<s>")
        self.eos_id = vocabulary.get("</s>")
        unk_token = model.get("unk_token")
        self.unk_id = vocabulary.get(unk_token) if isinstance(unk_token, str) else None
        self.has_dummy_prefix = self._adds_prefix(path)
        self.prefixes_each_text = _prefixes_each_text(description)
        first, last = control_tokens_around(description)
        self.adds_bos = first is not None or not description.get("post_processor")
        self.adds_eos = last == "</s>"

    def encode(self, text: str, *, with_prefix: bool) -> list[int]:
        return encoded(self._with_prefix if with_prefix else self._without_prefix, text)

    def _adds_prefix(self, path: Path) -> bool:
        try:
            return self.encode("a", with_prefix=True) != self.encode("a", with_prefix=False)
        except ApiError:
            raise TokenizerError(f"{path}: its rules give up on the text 'a'") from None


def has_byte_fallback(description: Json) -> bool:
    """Return whether a tokenizer.json has a vocabulary of SentencePiece's kind."""
    model = description.get("model")
    return isinstance(model, dict) and bool(model.get("byte_fallback"))


def _load_model(model: bytes, path: Path) -> sentencepiece.SentencePieceProcessor:
    """Load a serialized model. Python's binding accepts an empty model silently, hence the check for one."""
    try:
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(model)
        if model and processor.vocab_size() > 0:
            return processor
    except RuntimeError:
        pass  # the library's message names its own source lines; ours names the file
    raise TokenizerError(f"{path}: not a SentencePiece model, or a damaged one")


def _id_or_none(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None


def _normalizers(description: Json) -> list[object]:
    """Return the file's normalizers in their order; [None] without any."""
    normalizer = description.get("normalizer")
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else [normalizer]
    return steps if isinstance(steps, list) else [steps]


def _metaspaces(description: Json) -> list[Json]:
    """Return the pre-tokenizers that put a space in front of a text, perhaps."""
    pre_tokenizer = description.get("pre_tokenizer")
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if isinstance(pre_tokenizer, dict) else []
    found = steps if isinstance(steps, list) else []
    return [step for step in found if isinstance(step, dict) and step.get("type") == "Metaspace"]


def _prefixes_each_text(description: Json) -> bool:
    """Return whether the file puts a space in front of each text between control tokens, instead of the first alone."""
    schemes = [metaspace.get("prepend_scheme", "always") for metaspace in _metaspaces(description)]
    return "always" in schemes or _PREPEND in _normalizers(description)


def _normalizer(description: Json) -> Normalizer:
    steps = _normalizers(description)
    if steps in ([None], []):
        return "none"
    is_known = all(step in (_PREPEND, _MARK_SPACES) for step in steps)
    return "spaces" if is_known and _MARK_SPACES in steps else "other"


def _without_prefix(description: Json) -> Json:
    """Copy the description without its rule for the leading space, which can be a normalizer or a pre-tokenizer."""
    changed: Json = json.loads(json.dumps(description))
    normalizer = changed.get("normalizer")
    if isinstance(normalizer, dict):
        steps = normalizer.get("normalizers")
        changed["normalizer"] = {
            "type": "Sequence",
            "normalizers": [
                step for step in (steps if isinstance(steps, list) else [normalizer]) if step.get("type") != "Prepend"
            ],
        }
    for metaspace in _metaspaces(changed):
        metaspace["prepend_scheme"] = "never"
    return changed
