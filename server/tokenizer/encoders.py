"""Encoders of plain text for the two kinds of tokenizer files. Neither treats a spelling as a control token."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import sentencepiece

from server.tokenizer.config_files import (
    MAX_ADDED_CHARS,
    MAX_ADDED_IDS,
    AddedToken,
    TokenizerError,
    check_text,
    check_token_id,
    name_damage,
    read_file,
    read_json,
)

if TYPE_CHECKING:
    import tokenizers

# Protobuf merges a message into the one in front of it: this sets ModelProto.normalizer_spec.add_dummy_prefix to false.
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
SPACE = "\u2581"
MAX_PIECES = 2**20
MAX_PIECE_CHARS = 1024


class TextEncoder(Protocol):
    """Pieces of a tokenizer file, and the encoding of plain text into them."""

    pieces: list[str]  # by id; spaces as U+2581, single bytes as <0xE2>
    control_ids: frozenset[int]
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    has_dummy_prefix: bool  # text is encoded as if it had a space in front
    adds_eos: bool  # the file puts the end token behind a text

    def encode(self, text: str, *, with_prefix: bool) -> list[int]:
        """Encode plain text. `with_prefix`: add the leading space, if the model has that rule."""
        ...


class SentencePieceEncoder:
    """Encoder for a SentencePiece model file (tokenizer.model, tokenizer.model.v3)."""

    def __init__(self, path: Path, model: bytes | None = None) -> None:
        """`model`: the serialized model, if it is not the content of `path`. Raises TokenizerError, which names the
        file."""
        with name_damage(path):
            self._load(path, (read_file(path) or b"") if model is None else model)

    def _load(self, path: Path, model: bytes) -> None:
        self._with_prefix = _load_model(model, path)
        self._without_prefix = _load_model(model + NO_DUMMY_PREFIX, path)
        processor = self._with_prefix
        ids = _ids_of(path, processor.vocab_size())
        self.pieces = [check_text(path, processor.id_to_piece(i), MAX_PIECE_CHARS) for i in ids]
        self.control_ids = frozenset(i for i in ids if processor.is_control(i))
        self.bos_id = _id_or_none(processor.bos_id())
        self.eos_id = _id_or_none(processor.eos_id())
        self.unk_id = _id_or_none(processor.unk_id())
        self.has_dummy_prefix = processor.encode("a") != self._without_prefix.encode("a")
        self.adds_eos = False

    def encode(self, text: str, *, with_prefix: bool) -> list[int]:
        processor = self._with_prefix if with_prefix else self._without_prefix
        ids: list[int] = processor.encode(text)
        return ids


class HfTokenizerEncoder:
    """Encoder for a tokenizer.json of the same kind: byte-pair pieces with byte fallback."""

    def __init__(self, path: Path) -> None:
        """Raises TokenizerError, which names the file."""
        with name_damage(path):
            self._load(path)

    def _load(self, path: Path) -> None:
        description = read_json(path) or {}
        model = description.get("model")
        if not isinstance(model, dict) or not model.get("byte_fallback"):
            raise TokenizerError(f"{path}: only byte-pair vocabularies with byte fallback are supported")
        self.added_tokens = _added_tokens(path, description)
        plain = description | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        self._with_prefix = _build(plain, path)
        self._without_prefix = _build(_without_prefix(plain), path)
        vocabulary = self._with_prefix.get_vocab()
        self.pieces = _pieces_by_id(path, vocabulary)
        self.control_ids: frozenset[int] = frozenset(token.id for token in self.added_tokens if token.is_special)
        self.bos_id = vocabulary.get("<s>")
        self.eos_id = vocabulary.get("</s>")
        unk_token = model.get("unk_token")
        self.unk_id = vocabulary.get(unk_token) if isinstance(unk_token, str) else None
        self.has_dummy_prefix = self.encode("a", with_prefix=True) != self.encode("a", with_prefix=False)
        self.adds_eos = _ends_with_eos(description)

    def encode(self, text: str, *, with_prefix: bool) -> list[int]:
        tokenizer = self._with_prefix if with_prefix else self._without_prefix
        return tokenizer.encode(text, add_special_tokens=False).ids


def _ids_of(path: Path, num_pieces: int) -> range:
    if num_pieces > MAX_PIECES:
        raise TokenizerError(f"{path}: {num_pieces} pieces, more than {MAX_PIECES}")
    return range(num_pieces)


def _pieces_by_id(path: Path, vocabulary: dict[str, int]) -> list[str]:
    """Return the pieces in a list; ids without a piece get ""."""
    num_ids = max(vocabulary.values(), default=-1) + 1
    if num_ids > len(vocabulary) + MAX_ADDED_IDS:
        raise TokenizerError(f"{path}: token id {num_ids - 1} is far beyond its {len(vocabulary)} pieces")
    pieces = [""] * len(_ids_of(path, num_ids))
    for piece, token_id in vocabulary.items():
        pieces[token_id] = check_text(path, piece, MAX_PIECE_CHARS)
    return pieces


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


def _added_tokens(path: Path, description: dict[str, object]) -> tuple[AddedToken, ...]:
    listed = description.get("added_tokens")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return tuple(_added_token(path, entry) for entry in entries)


def _added_token(path: Path, entry: dict[str, object]) -> AddedToken:
    content = entry.get("content")
    if not isinstance(content, str):
        raise TokenizerError(f"{path}: an added token has no text")
    text = check_text(path, content, MAX_ADDED_CHARS)
    return AddedToken(check_token_id(path, entry.get("id")), text, bool(entry.get("special")))


def _ends_with_eos(description: dict[str, object]) -> bool:
    """Return whether the post-processor's template of one text ends with the end token."""
    processor = description.get("post_processor")
    template = processor.get("single") if isinstance(processor, dict) else None
    last = template[-1] if isinstance(template, list) and template else None
    special = last.get("SpecialToken") if isinstance(last, dict) else None
    return isinstance(special, dict) and special.get("id") == "</s>"


def _without_prefix(description: dict[str, object]) -> dict[str, object]:
    """Copy the description without its rule for the leading space, which can be a normalizer or a pre-tokenizer."""
    changed: dict[str, object] = json.loads(json.dumps(description))
    normalizer, pre_tokenizer = changed.get("normalizer"), changed.get("pre_tokenizer")
    if isinstance(normalizer, dict):
        steps = normalizer.get("normalizers")
        changed["normalizer"] = {
            "type": "Sequence",
            "normalizers": [
                step for step in (steps if isinstance(steps, list) else [normalizer]) if step.get("type") != "Prepend"
            ],
        }
    if isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Metaspace":
        pre_tokenizer["prepend_scheme"] = "never"
    return changed


def _build(description: dict[str, object], path: Path) -> "tokenizers.Tokenizer":
    try:
        import tokenizers
    except ImportError:
        message = f"{path}: reading this file needs another package: pip install 'smoe[tokenizers]'"
        raise TokenizerError(message) from None
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(description))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 (a bare Exception for an invalid file, and Rust's panics)
        raise TokenizerError(f"{path}: not a usable tokenizer ({type(error).__name__})") from None
