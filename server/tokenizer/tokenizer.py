"""Text to token ids and back, for one checkpoint.

Plain text and control tokens never mix: `encode` reads "</s>" as four characters, `encode_with_specials` as the control
token. Decoding works on bytes: each token stands for some bytes (`token_bytes`). Their concatenation is read as UTF-8,
with U+FFFD for invalid bytes, and without the one space that SentencePiece puts in front of a text.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from engine.capacity.gguf_vocabulary import PACKED_VOCABULARY
from engine.types import Vocabulary
from server.tokenizer.byte_level import ByteLevelEncoder, is_byte_level
from server.tokenizer.config_files import (
    AddedToken,
    Json,
    NoTokenizerError,
    TokenizerError,
    TokenizerSettings,
    name_damage,
    read_json,
    read_settings,
)
from server.tokenizer.encoders import SPACE, HfTokenizerEncoder, SentencePieceEncoder, TextEncoder, has_byte_fallback
from server.tokenizer.gguf_vocabulary import read_gguf_tokenizer
from server.tokenizer.tekken import BOS, EOS, tokenizer_json_of_tekken
from server.tokenizer.token_table import TokenTable
from server.tokenizer.tokenizer_json import added_tokens as tokens_of_json

__all__ = ["NoTokenizerError", "Tokenizer", "TokenizerError", "load_tokenizer"]

TEKKEN_FILE = "tekken.json"  # a byte-level vocabulary in Mistral's own layout

Value = TypeVar("Value")


def load_tokenizer(path: Path) -> "Tokenizer":
    """Load the tokenizer of the checkpoint `path`, a directory or a GGUF file.

    Raises TokenizerError: one line with file and fault; NoTokenizerError if there is none.
    """
    gguf = path if path.is_file() else path / PACKED_VOCABULARY
    if gguf.is_file():
        encoder, settings = read_gguf_tokenizer(gguf)
        return _build(gguf, encoder, settings, settings.added_tokens, None)
    settings = read_settings(path)
    model = _model_file(path)
    if model is not None:
        try:
            pieces = SentencePieceEncoder(model)
        except TokenizerError:
            if not _has_byte_level_json(path):  # beside it Llama 3's tokenizer.model is another format, tiktoken's
                raise
        else:
            return _build(model, pieces, settings, _added_beside(path, pieces, settings), _version(model))
    model = path / "tokenizer.json"
    description = read_json(model)
    if description is not None:
        kind = ByteLevelEncoder if is_byte_level(description) else HfTokenizerEncoder
        by_json = kind(model, description)
        return _build(model, by_json, settings, (*by_json.added_tokens, *settings.added_tokens), None)
    model = path / TEKKEN_FILE
    description = read_json(model)
    if description is not None:
        return _of_tekken(model, description, settings)
    raise NoTokenizerError(
        f"{path}: no tokenizer (tokenizer.model, tokenizer.model.v*, tokenizer.json or {TEKKEN_FILE})"
    )


def _of_tekken(model: Path, content: Json, settings: TokenizerSettings) -> "Tokenizer":
    """Build the tokenizer of a tekken.json, whose control tokens all models name alike."""
    with name_damage(model):
        description, version = tokenizer_json_of_tekken(model, content)
    encoder = ByteLevelEncoder(model, description)
    named = replace(settings, bos_token=settings.bos_token or BOS, eos_token=settings.eos_token or EOS)
    return _build(model, encoder, named, (*encoder.added_tokens, *settings.added_tokens), version)


def _added_beside(path: Path, encoder: SentencePieceEncoder, settings: TokenizerSettings) -> tuple[AddedToken, ...]:
    """Return the added tokens of a checkpoint with a tokenizer.model.

    Transformers 5 lists them in tokenizer.json alone. That file, which transformers prefers, is read if no other lists
    them, or if one is looked for in the text that its normalizer makes; then its rule for prefixes counts, too.
    """
    added = settings.added_tokens
    if settings.lists_added_tokens and not any(token.is_normalized and not token.is_special for token in added):
        return added
    file = path / "tokenizer.json"
    description = read_json(file) or {}
    if not has_byte_fallback(description):
        return added
    with name_damage(file):
        encoder.take_rules(description)
        known = {token.id for token in added}
        return (*added, *(token for token in tokens_of_json(file, description) if token.id not in known))


def _has_byte_level_json(path: Path) -> bool:
    try:
        return is_byte_level(read_json(path / "tokenizer.json") or {})
    except TokenizerError:
        return False


def _build(
    model: Path,
    encoder: TextEncoder,
    settings: TokenizerSettings,
    added_tokens: tuple[AddedToken, ...],
    version: int | None,
) -> "Tokenizer":
    """Build the tokenizer; errors that concern all files together name the tokenizer file."""
    with name_damage(model):
        try:
            return Tokenizer(encoder, settings, added_tokens, version)
        except TokenizerError as error:
            raise TokenizerError(f"{model}: {error}") from None


def _model_file(path: Path) -> Path | None:
    """Find tokenizer.model, else the newest tokenizer.model.v*."""
    if (path / "tokenizer.model").is_file():
        return path / "tokenizer.model"
    versions = [file for file in path.glob("*.model.v*") if file.is_file()]
    return max(versions, key=lambda file: (_version(file) or 0, file.name), default=None)


def _version(model: Path) -> int | None:
    match = re.search(r"\.model\.v(\d+)", model.name)
    return int(match.group(1)) if match else None


class Tokenizer:
    """Tokenizer of one checkpoint. Several threads can use it: what it returns never changes once it is built.

    vocab_size: one more than the highest id. bos_id, eos_ids: None and () where the checkpoint has none.
    version: 3 for a file called tokenizer.model.v3, or a tekken.json that says v3; None where the file names none.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        settings: TokenizerSettings,
        added_tokens: tuple[AddedToken, ...] = (),
        version: int | None = None,
    ) -> None:
        self._encoder = encoder
        each = encoder.prefixes_each_text
        self._is_legacy = settings.is_legacy if each is None else each
        self.version = version
        self.chat_template = settings.chat_template
        self._table = TokenTable(encoder, settings, added_tokens)
        self._control_ids = self._table.control_ids
        self._raw_bytes = self._table.raw_bytes
        self.vocab_size = len(self._raw_bytes)
        self.bos_id = self._table.bos_id
        self.eos_ids = self._table.eos_ids
        self._adds_bos = encoder.adds_bos if settings.adds_bos is None else settings.adds_bos
        adds_eos = encoder.adds_eos if settings.adds_eos is None else settings.adds_eos
        self._end_of_text = list(self.eos_ids[:1]) if adds_eos else []
        self._shown_table: tuple[frozenset[int], list[bytes]] = frozenset(), self._table.text_bytes
        self._max_token_bytes = max(map(len, self._raw_bytes), default=1)
        self._shown_texts = _PerToken(lambda token_id: _shown_text(self.token_bytes(token_id)))
        self._byte_values = _PerToken(lambda token_id: list(self.token_bytes(token_id)))

    @property
    def special_spellings(self) -> frozenset[str]:
        """Texts that `encode_with_specials` reads as control tokens."""
        return frozenset(self._table.special_ids)

    @property
    def special_pattern(self) -> re.Pattern[str]:
        """Pattern that matches the longest special spelling at a position."""
        return self._table.controls.pattern

    @property
    def is_byte_level(self) -> bool:
        """True if the pieces are byte pairs without SentencePiece's rules for spaces."""
        return self._encoder.is_byte_level

    @property
    def prefixes_each_text(self) -> bool:
        """True if each text between control tokens gets SentencePiece's leading space; else only the first does."""
        return self._is_legacy and self._encoder.has_dummy_prefix

    def vocabulary(self) -> Vocabulary:
        """Return what the engine needs: token bytes and control ids for grammars, and the ends of answers."""
        return Vocabulary(list(self._raw_bytes), sorted(self._control_ids), list(self.eos_ids))

    def special_token_id(self, text: str) -> int | None:
        """Return the id of the control token spelled `text`, or None."""
        return self._table.special_ids.get(text)

    def check_fits(self, vocab_size: int) -> None:
        """Raise TokenizerError if an id has no row in the model's embedding. Fewer ids than rows are fine."""
        num_pieces = self._table.num_pieces
        if num_pieces > vocab_size:
            raise TokenizerError(f"the tokenizer has {num_pieces} tokens, the model's vocabulary {vocab_size}")
        if self.vocab_size > vocab_size:
            highest = self.vocab_size - 1
            raise TokenizerError(f"the tokenizer adds token id {highest}, the model's vocabulary has only {vocab_size}")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Encode plain text. The only control token is the bos in front, where the checkpoint adds one."""
        ids = self._encode_text(text, is_first=True)
        return [self.bos_id, *ids] if add_special_tokens and self._adds_bos and self.bos_id is not None else ids

    def encode_to_embed(self, text: str, add_special_tokens: bool = True, max_tokens: int | None = None) -> list[int]:
        """Encode plain text between the control tokens that the checkpoint puts around it: bos, and eos if it adds one.

        Embedding models are trained with these, and many embed a text as the state of its eos. A text of more than
        `max_tokens` tokens loses its end, not its control tokens.
        """
        start = [self.bos_id] if add_special_tokens and self._adds_bos and self.bos_id is not None else []
        end = self._end_of_text if add_special_tokens else []
        ids = self._encode_text(text, is_first=True)
        room = None if max_tokens is None else max(0, max_tokens - len(start) - len(end))
        encoded = [*start, *ids[:room], *end]
        return encoded if max_tokens is None else encoded[-max_tokens:]

    def encode_with_specials(self, text: str, *, guard: str = "") -> list[int]:
        """Encode a rendered template: control tokens' spellings become their ids, as in LlamaTokenizer.

        They are found first: no added token that a text ends with can hide the beginning of one.

        `guard`: a character that is removed from the text once the control tokens have been found. Put inside a
        spelling, it keeps that spelling plain text.
        """
        ids: list[int] = []
        for part, token_id in self._table.controls.split(text):
            ids += self._encode_text(_remove_guard(part, guard), is_first=not ids)
            ids += [] if token_id is None else [token_id]
        return ids

    def encode_words(self, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
        """Encode each word as it appears inside a text: once without and once with a space in front."""
        texts = [text for word in words for text in (word.lstrip(" "), " " + word.lstrip(" "))]
        encoded = [tuple(self._encode_piecewise(text, with_prefix=False)) for text in texts]
        return tuple(dict.fromkeys(ids for ids in encoded if ids))

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of the ids; ids beyond the vocabulary (rows that pad an embedding) add nothing."""
        shown = [i for i in ids if not (skip_special_tokens and self.is_special(i))]
        parts = [self.token_bytes(i) for i in shown]
        for position, token_id in enumerate(shown):
            if parts[position]:
                if self.has_leading_space(token_id):
                    parts[position] = parts[position][1:]
                break
        return b"".join(parts).decode("utf-8", errors="replace")

    def is_special(self, token_id: int) -> bool:
        """Return whether the id is a control token's."""
        return token_id in self._control_ids

    def has_leading_space(self, token_id: int) -> bool:
        """Return whether a text that begins with this token begins with SentencePiece's own space, to be removed."""
        return self._encoder.has_dummy_prefix and self._table.starts_with_space(token_id)

    def bytes_by_id(self, *, skip_special_tokens: bool, shown_ids: Collection[int] = ()) -> Sequence[bytes]:
        """Return the bytes that each token adds to a text, by id. Ids beyond the end add nothing.

        `shown_ids`: see Detokenizer. Choices share the table of the latest ones: it is as long as the vocabulary.
        """
        if not skip_special_tokens:
            return self._raw_bytes
        if not shown_ids:
            return self._table.text_bytes
        shown, table = self._shown_table
        if shown != frozenset(shown_ids):
            shown, table = frozenset(shown_ids), [*self._table.text_bytes]
            for token_id in shown:
                table[token_id] = self.token_bytes(token_id)
            self._shown_table = shown, table
        return table

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token: a control token's spelling, nothing for an id beyond the vocabulary."""
        if token_id < 0:
            raise ValueError("token ids are not negative")
        return self._raw_bytes[token_id] if token_id < self.vocab_size else b""

    def token_text(self, token_id: int) -> str:
        """Return one token for display: its text, or `<0xE2>` for each byte if the bytes are not complete UTF-8."""
        return self._shown_texts[token_id]

    def shown_texts(self, token_ids: Iterable[int]) -> list[str]:
        """Return `token_text` of each token."""
        return [*map(self._shown_texts.__getitem__, token_ids)]

    def byte_values(self, token_ids: Iterable[int]) -> list[list[int]]:
        """Return the numbers in `token_bytes` of each token. The lists are shared: do not change them."""
        return [*map(self._byte_values.__getitem__, token_ids)]

    def min_num_tokens(self, text: str) -> int:
        """Return a lower bound on the text's tokens without tokenizing: its bytes over those of the longest token."""
        return -(-len(text.encode("utf-8")) // max(1, self._max_token_bytes))

    def _encode_text(self, text: str, *, is_first: bool) -> list[int]:
        """Encode plain text, in which added tokens are recognized unless they are control tokens."""
        ids: list[int] = []
        for part, token_id in self._table.plain_added.split(text):
            ids += self._encode_normalized(part, is_first=is_first)
            ids += [] if token_id is None else [token_id]
            is_first = False
        return ids

    def _encode_normalized(self, text: str, *, is_first: bool) -> list[int]:
        """Encode text, in which those added tokens are recognized that are looked for in normalized text."""
        with_prefix, marks_spaces = self._is_legacy or is_first, self._table.marks_spaces
        if not text or not self._table.normalized_added:
            return self._encode_piecewise(text, with_prefix=with_prefix)
        if marks_spaces:
            prefix = SPACE if with_prefix and self._encoder.has_dummy_prefix else ""
            text, with_prefix = prefix + text.replace(" ", SPACE), False
        ids: list[int] = []
        for part, token_id in self._table.normalized_added.split(text):
            ids += self._encode_piecewise(part.replace(SPACE, " ") if marks_spaces else part, with_prefix=with_prefix)
            ids += [] if token_id is None else [token_id]
            with_prefix = self._is_legacy and not marks_spaces
        return ids

    def _encode_piecewise(self, text: str, *, with_prefix: bool) -> list[int]:
        """Encode text without added tokens; cut it inside a control token that the model file itself matches."""
        if not text:
            return []
        ids: list[int] = []
        parts = [text]  # that are left, the first one last
        while parts:
            part = parts.pop()
            found = self._encoder.encode(part, with_prefix=with_prefix)
            controls = self._control_ids.intersection(found) - {self._encoder.unk_id}
            if controls and len(part) > 1:
                parts += reversed(self._cut(part, controls))
                continue
            # A file may make a control token of one character.
            ids += [i for i in found if i not in self._control_ids] if controls else found
            with_prefix = False
        return ids

    def _cut(self, text: str, controls: Set[int]) -> list[str]:
        """Cut a text inside each spelling of these control tokens; in the middle if it has none."""
        starts = (m.start() for m in self._table.controls.pattern.finditer(text) if self._spells(m.group(), controls))
        cuts = sorted({min(start + 1, len(text) - 1) for start in starts}) or [len(text) // 2]
        return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]

    def _spells(self, text: str, controls: Set[int]) -> bool:
        return self._table.special_ids[text] in controls


class _PerToken(dict[int, Value]):
    """Values by token id, each made when it is read first. Replies with log probabilities read the same ones often."""

    def __init__(self, make: Callable[[int], Value]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, token_id: int) -> Value:
        value = self[token_id] = self._make(token_id)
        return value


def _shown_text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in raw)


def _remove_guard(text: str, guard: str) -> str:
    return text.replace(guard, "") if guard else text
