"""Text to token ids and back, for one checkpoint.

Plain text and control tokens never mix: `encode` reads "</s>" as four characters, `encode_with_specials` as the control
token. Decoding is defined on bytes: each token stands for some bytes (`token_bytes`), their concatenation is read as
UTF-8 with U+FFFD for what is none, and the one space that SentencePiece puts in front of a text is taken off again.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.types import Vocabulary
from server.tokenizer.config_files import AddedToken, TokenizerError, TokenizerSettings, read_settings
from server.tokenizer.encoders import SPACE, HfTokenizerEncoder, SentencePieceEncoder, TextEncoder

__all__ = ["Tokenizer", "TokenizerError", "load_tokenizer"]

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def load_tokenizer(path: Path) -> "Tokenizer":
    """The tokenizer of the checkpoint in directory `path`. Raises TokenizerError, one line that says what and where."""
    settings = read_settings(path)
    model = _model_file(path)
    if model is not None:
        return Tokenizer(SentencePieceEncoder(model), settings, settings.added_tokens, _version(model))
    if (path / "tokenizer.json").is_file():
        encoder = HfTokenizerEncoder(path / "tokenizer.json")
        return Tokenizer(encoder, settings, (*encoder.added_tokens, *settings.added_tokens), None)
    raise TokenizerError(f"{path}: no tokenizer (tokenizer.model, tokenizer.model.v* or tokenizer.json)")


def _model_file(path: Path) -> Path | None:
    """tokenizer.model, else the newest tokenizer.model.v*."""
    if (path / "tokenizer.model").is_file():
        return path / "tokenizer.model"
    versions = [file for file in path.glob("*.model.v*") if file.is_file()]
    return max(versions, key=lambda file: (_version(file) or 0, file.name), default=None)


def _version(model: Path) -> int | None:
    match = re.search(r"\.model\.v(\d+)", model.name)
    return int(match.group(1)) if match else None


class Tokenizer:
    """Immutable after it is built, and safe to use from several threads.

    vocab_size: one more than the highest id. bos_id, eos_ids: None and () where the checkpoint has none.
    version: 3 for a file called tokenizer.model.v3; None where the name does not say.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        settings: TokenizerSettings,
        added_tokens: tuple[AddedToken, ...] = (),
        version: int | None = None,
    ) -> None:
        self._encoder = encoder
        self._is_legacy = settings.is_legacy
        self.version = version
        self.chat_template = settings.chat_template
        self.num_pieces = len(encoder.pieces)
        self._spellings = _spellings(encoder.pieces, added_tokens)  # by id
        self.vocab_size = len(self._spellings)
        by_text = {text: i for i, text in reversed(list(enumerate(self._spellings)))}
        added_ids = {token.text: token.id for token in added_tokens}
        named = {text: (by_text | added_ids)[text] for text in settings.special_tokens if text in (by_text | added_ids)}
        special_added = {token.text: token.id for token in added_tokens if token.is_special}
        control = {self._spellings[i]: i for i in encoder.control_ids}
        unknown = {} if encoder.unk_id is None else {self._spellings[encoder.unk_id]: encoder.unk_id}
        self._special_ids = {text: i for text, i in (unknown | control | named | special_added).items() if text}
        self._specials = frozenset(self._special_ids.values())
        self._plain_added = {t.text: t.id for t in added_tokens if not t.is_special and t.id not in self._specials}
        self.bos_id = self._special_ids.get(settings.bos_token or "", encoder.bos_id)
        eos_id = self._special_ids.get(settings.eos_token or "", encoder.eos_id)
        self.eos_ids = tuple(dict.fromkeys([*([] if eos_id is None else [eos_id]), *settings.eos_ids]))
        self._adds_bos = settings.adds_bos and self.bos_id is not None
        self._bytes = [self._bytes_of(i) for i in range(self.vocab_size)]
        self._shown_bytes = [b"" if i in self._specials else raw for i, raw in enumerate(self._bytes)]
        self.max_token_bytes = max(map(len, self._bytes), default=1)
        self._special_pattern = _any_of(self._special_ids)
        self._added_pattern = _any_of(self._plain_added)

    @property
    def special_spellings(self) -> frozenset[str]:
        """The texts that `encode_with_specials` reads as control tokens."""
        return frozenset(self._special_ids)

    @property
    def special_pattern(self) -> re.Pattern[str]:
        """Matches one of the special spellings, the longest that stands there."""
        return self._special_pattern

    @property
    def prefixes_each_text(self) -> bool:
        """Whether each text between control tokens gets SentencePiece's leading space, not the first alone."""
        return self._is_legacy and self._encoder.has_dummy_prefix

    def vocabulary(self) -> Vocabulary:
        """What the engine's grammars need of it."""
        return Vocabulary(list(self._bytes), sorted(self._specials))

    def special_token_id(self, text: str) -> int | None:
        """The id of the control token spelled `text`."""
        return self._special_ids.get(text)

    def check_fits(self, vocab_size: int) -> None:
        """Raises TokenizerError where an id has no row in the model's embedding. Fewer ids than rows are fine."""
        if self.num_pieces > vocab_size:
            raise TokenizerError(f"the tokenizer has {self.num_pieces} tokens, the model's vocabulary {vocab_size}")
        if self.vocab_size > vocab_size:
            highest = self.vocab_size - 1
            raise TokenizerError(f"the tokenizer adds token id {highest}, the model's vocabulary has only {vocab_size}")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of plain text, none of them a control token's but the bos in front, where the checkpoint adds one."""
        ids = self._encode_text(text, is_first=True)
        return [self.bos_id, *ids] if add_special_tokens and self._adds_bos and self.bos_id is not None else ids

    def encode_with_specials(self, text: str, *, guard: str = "") -> list[int]:
        """Ids of a rendered template: control tokens' spellings become their ids, as LlamaTokenizer reads them.

        `guard` is a character that is taken out of the text once the control tokens have been found: put inside a
        spelling, it keeps that spelling plain text.
        """
        ids: list[int] = []
        start = 0
        for match in self._special_pattern.finditer(text):
            ids += self._encode_text(_without(text[start : match.start()], guard), is_first=not ids)
            ids.append(self._special_ids[match.group()])
            start = match.end()
        return ids + self._encode_text(_without(text[start:], guard), is_first=not ids)

    def encode_words(self, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
        """Token ids of each word as it stands inside a text, with a space in front and without one."""
        texts = [text for word in words for text in (word.lstrip(" "), " " + word.lstrip(" "))]
        encoded = [tuple(self._encode_piecewise(text, with_prefix=False)) for text in texts]
        return tuple(dict.fromkeys(ids for ids in encoded if ids))

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of the ids; ids beyond the vocabulary (rows that pad an embedding) have none."""
        shown = [i for i in ids if not (skip_special_tokens and self.is_special(i))]
        parts = [self.token_bytes(i) for i in shown]
        for position, token_id in enumerate(shown):
            if parts[position]:
                if self.has_leading_space(token_id):
                    parts[position] = parts[position][1:]
                break
        return b"".join(parts).decode("utf-8", errors="replace")

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token's."""
        return token_id in self._specials

    def has_leading_space(self, token_id: int) -> bool:
        """Whether a text that starts with this token starts with SentencePiece's own space, to be taken off."""
        in_pieces = 0 <= token_id < self.num_pieces and token_id not in self._specials
        return in_pieces and self._encoder.has_dummy_prefix and self._spellings[token_id].startswith(SPACE)

    def bytes_by_id(self, *, skip_special_tokens: bool) -> Sequence[bytes]:
        """What each token adds to a text. Ids beyond its end add nothing."""
        return self._shown_bytes if skip_special_tokens else self._bytes

    def token_bytes(self, token_id: int) -> bytes:
        """What the token stands for; a control token for its spelling, an id beyond the vocabulary for nothing."""
        if token_id < 0:
            raise ValueError("token ids are not negative")
        return self._bytes[token_id] if token_id < self.vocab_size else b""

    def token_text(self, token_id: int) -> str:
        """The token by itself, for people: its text, or `<0xE2>` for each byte where it is no complete text."""
        raw = self.token_bytes(token_id)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in raw)

    def min_num_tokens(self, text: str) -> int:
        """A lower bound on the text's tokens, without tokenizing it: no token stands for more than so many bytes."""
        return -(-len(text.encode("utf-8")) // max(1, self.max_token_bytes))

    def _encode_text(self, text: str, *, is_first: bool) -> list[int]:
        """Plain text, in which only added tokens that are not special are looked for."""
        ids: list[int] = []
        start = 0
        for match in self._added_pattern.finditer(text):
            ids += self._encode_piecewise(text[start : match.start()], with_prefix=self._is_legacy or is_first)
            ids.append(self._plain_added[match.group()])
            start, is_first = match.end(), False
        return ids + self._encode_piecewise(text[start:], with_prefix=self._is_legacy or is_first)

    def _encode_piecewise(self, text: str, *, with_prefix: bool) -> list[int]:
        """Some models match whole spellings of their own; where that gives a control token, it is cut in two."""
        if not text:
            return []
        ids = self._encoder.encode(text, with_prefix=with_prefix)
        if not any(i in self._specials and i != self._encoder.unk_id for i in ids):
            return ids
        match = self._special_pattern.search(text)
        cut = match.start() + 1 if match else len(text) // 2
        return self._encode_piecewise(text[:cut], with_prefix=with_prefix) + self._encode_piecewise(
            text[cut:], with_prefix=False
        )

    def _bytes_of(self, token_id: int) -> bytes:
        spelling = self._spellings[token_id]
        byte = _BYTE_PIECE.fullmatch(spelling)
        if byte and token_id < self.num_pieces:
            return bytes.fromhex(byte.group(1))
        is_piece = token_id < self.num_pieces and token_id not in self._specials
        return (spelling.replace(SPACE, " ") if is_piece else spelling).encode("utf-8")


def _spellings(pieces: list[str], added_tokens: tuple[AddedToken, ...]) -> list[str]:
    """Texts by id. An added token may rename a piece; ids between the pieces and an added one stand for nothing."""
    texts = list(pieces)
    for token in added_tokens:
        if token.id >= len(pieces) + 2**20:
            raise TokenizerError(f"the tokenizer adds token id {token.id}, far beyond its {len(pieces)} pieces")
        texts += [""] * (token.id + 1 - len(texts))
        texts[token.id] = token.text
    return texts


def _without(text: str, guard: str) -> str:
    return text.replace(guard, "") if guard else text


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of `texts`; nothing, where there are none."""
    words = {text for text in texts if text}
    return re.compile(_trie(words) if words else r"(?!)")


def _trie(words: set[str]) -> str:
    """A pattern as a tree of characters: its time does not grow with the number of words, as a list of them would.

    {"<s>", "</s>"} gives `<(?:/s>|s>)`.
    """
    branches = []
    for first in sorted({word[0] for word in words if word}):
        branches.append(re.escape(first) + _trie({word[1:] for word in words if word.startswith(first)}))
    if not branches:
        return ""
    tree = branches[0] if len(branches) == 1 and "" not in words else f"(?:{'|'.join(branches)})"
    return tree + "?" if "" in words else tree
