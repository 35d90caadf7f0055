"""Vocabulary of one checkpoint by token id: texts, bytes, and which ids are control tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from server.tokenizer.added_tokens import AddedMatcher
from server.tokenizer.config_files import (
    MAX_ADDED_CHARS,
    MAX_ADDED_IDS,
    AddedToken,
    TokenizerError,
    TokenizerSettings,
)
from server.tokenizer.encoders import SPACE, TextEncoder

MAX_SPELLED_CHARS = 2**20  # of all added and control tokens together
# Control tokens that end an answer in every vocabulary that has them: ChatML's, and Llama 3's ends of a turn, of a
# message that calls a tool, and of a text.
ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
# Control tokens of ChatML and Llama 3, which files may add as plain text.
MARKS = ("<|im_start|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", *ENDS)


class TokenTable:
    """Merge of the tokenizer file's pieces and the added tokens of the JSON files; never changed once built.

    spellings: each token's text by id, pieces as the file writes them. raw_bytes: the bytes that each token
    stands for. text_bytes: the same, but nothing for control tokens. special_ids: ids of the control tokens, by
    spelling. controls finds them, plain_added the other added tokens, and normalized_added those that are looked for in
    normalized text. marks_spaces: such text has U+2581 for each space. bos_id, eos_ids: None and () where the
    checkpoint has none.
    """

    def __init__(
        self, encoder: TextEncoder, settings: TokenizerSettings, added_tokens: tuple[AddedToken, ...] = ()
    ) -> None:
        """Raises TokenizerError if an added token's id lies far beyond the pieces, or its text is too long."""
        self.num_pieces = len(encoder.pieces)
        self.spellings = _merge_spellings(encoder.pieces, added_tokens)
        self.special_ids = _find_special_ids(self.spellings, encoder, settings, added_tokens)
        self.control_ids = frozenset(self.special_ids.values())
        plain = [token for token in added_tokens if not token.is_special and token.id not in self.control_ids]
        self.bos_id = self.special_ids.get(settings.bos_token or "", encoder.bos_id)
        eos_id = self.special_ids.get(settings.eos_token or "", encoder.eos_id)
        ends = [eos_id, *settings.eos_ids, *map(self.special_ids.get, ENDS)]
        self.eos_ids = tuple(dict.fromkeys(token_id for token_id in ends if token_id is not None))
        self.raw_bytes = [self._bytes_of(i, spelling, encoder) for i, spelling in enumerate(self.spellings)]
        self.text_bytes = [b"" if i in self.control_ids else raw for i, raw in enumerate(self.raw_bytes)]
        _check_lengths([*self.special_ids, *{token.text for token in plain}])
        self.controls = AddedMatcher(_controls(self.special_ids, added_tokens))
        self.plain_added = AddedMatcher(token for token in plain if not token.is_normalized)
        self.marks_spaces = encoder.normalizer == "spaces"
        normalized = [token for token in plain if token.is_normalized]
        self.normalized_added = AddedMatcher(_normalized(normalized, encoder, marks_spaces=self.marks_spaces))

    def is_plain_piece(self, token_id: int) -> bool:
        """Return whether the id is one of the tokenizer file's pieces and no control token."""
        return 0 <= token_id < self.num_pieces and token_id not in self.control_ids

    def starts_with_space(self, token_id: int) -> bool:
        """Return whether the id is a piece that starts with a space."""
        return self.is_plain_piece(token_id) and self.spellings[token_id].startswith(SPACE)

    def _bytes_of(self, token_id: int, spelling: str, encoder: TextEncoder) -> bytes:
        """Return a piece's bytes, or the spelling's if it is that of an added token."""
        is_piece = self.is_plain_piece(token_id) and spelling == encoder.pieces[token_id]
        return encoder.bytes_of_piece(spelling) if is_piece else spelling.encode("utf-8")


def _normalized(tokens: Sequence[AddedToken], encoder: TextEncoder, *, marks_spaces: bool) -> Sequence[AddedToken]:
    """Return the tokens as the file's normalizer writes them. Raises TokenizerError if it changes more than spaces."""
    if tokens and encoder.normalizer == "other":
        raise TokenizerError(
            f"the added token {tokens[0].text!r} is marked as normalized, but the file's normalizer changes more than "
            "spaces, which is not supported; set its `normalized` to false"
        )
    if not marks_spaces:
        return tokens
    prefix = SPACE if encoder.has_dummy_prefix else ""
    return [replace(token, text=prefix + token.text.replace(" ", SPACE)) for token in tokens]


def _controls(special_ids: Mapping[str, int], added_tokens: Sequence[AddedToken]) -> Sequence[AddedToken]:
    """Return the control tokens with their flags. Templates write them: each is found wherever it is spelled."""
    flags = {token.text: token for token in added_tokens}
    found = [replace(flags.get(text, AddedToken(i, text, True)), id=i) for text, i in special_ids.items()]
    for token in found:
        if token.is_word:
            raise TokenizerError(f"the control token {token.text!r} is marked as single_word: a text could hide it")
    return found


def _check_lengths(spellings: Sequence[str]) -> None:
    """Raise TokenizerError where patterns over these texts would be too large."""
    longest = max(map(len, spellings), default=0)
    if longest > MAX_ADDED_CHARS:
        raise TokenizerError(f"an added or control token has {longest} characters, more than {MAX_ADDED_CHARS}")
    total = sum(map(len, spellings))
    if total > MAX_SPELLED_CHARS:
        raise TokenizerError(f"added and control tokens have {total} characters, more than {MAX_SPELLED_CHARS}")


def _merge_spellings(pieces: Sequence[str], added_tokens: tuple[AddedToken, ...]) -> list[str]:
    """Return texts by id. An added token may rename a piece; unused ids between pieces and added tokens get ""."""
    texts = list(pieces)
    for token in added_tokens:
        if token.id >= len(pieces) + MAX_ADDED_IDS:
            raise TokenizerError(f"the tokenizer adds token id {token.id}, far beyond its {len(pieces)} pieces")
        texts += [""] * (token.id + 1 - len(texts))
        texts[token.id] = token.text
    return texts


def _find_special_ids(
    spellings: Sequence[str],
    encoder: TextEncoder,
    settings: TokenizerSettings,
    added_tokens: tuple[AddedToken, ...],
) -> dict[str, int]:
    """Map the spelling of each control token to its id. Where sources disagree, the one merged last counts."""
    by_text = {text: i for i, text in reversed(list(enumerate(spellings)))}
    by_text |= {token.text: token.id for token in added_tokens}
    unknown = {} if encoder.unk_id is None else {spellings[encoder.unk_id]: encoder.unk_id}
    control = {spellings[i]: i for i in encoder.control_ids}
    named = {text: by_text[text] for text in settings.special_tokens if text in by_text}
    if encoder.is_byte_level:  # "!", which pads in some files of Llama 3, stays text: there it is no added token
        named = {text: i for text, i in named.items() if encoder.pieces[i : i + 1] != [text]}
    special_added = {token.text: token.id for token in added_tokens if token.is_special or token.text in MARKS}
    return {text: i for text, i in (unknown | control | named | special_added).items() if text}
