"""Incremental detokenization: token ids of one choice to text, as they arrive."""

import codecs
from collections.abc import Collection, Sequence

from server.tokenizer.tokenizer import Tokenizer

MAX_UTF8_TAIL = 3  # bytes of an incomplete character at most


class Detokenizer:
    """Incremental decoder of one choice; returns only complete characters that no later token can change.

    Without a prompt, the deltas of `push` and `finish` add up to `tokenizer.decode(ids)`, however the ids are split: a
    chat answer does not start with the space that SentencePiece puts in front of a text. With a prompt, they add up to
    the part of decode(prompt + ids) after decode(prompt): a completion of "It is a" by the token "▁truth" is " truth".
    A character that begins in the prompt's last bytes is returned complete.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        prompt_token_ids: Sequence[int] = (),
        shown_ids: Collection[int] = (),
    ) -> None:
        """`shown_ids`: special tokens whose spelling is part of the text despite `skip_special_tokens`."""
        self._tokenizer = tokenizer
        self._bytes = tokenizer.bytes_by_id(skip_special_tokens=skip_special_tokens, shown_ids=shown_ids)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._has_started = any(self._bytes_of(token_id) for token_id in prompt_token_ids)
        for token_id in prompt_token_ids[-MAX_UTF8_TAIL:]:
            self._decoder.decode(self._bytes_of(token_id))

    def push(self, token_ids: Sequence[int]) -> str:
        """Return the text that these tokens complete."""
        if not self._has_started:
            return self._decoder.decode(b"".join(map(self._first_bytes_of, token_ids)))
        try:
            return self._decoder.decode(b"".join(map(self._bytes.__getitem__, token_ids)))
        except IndexError:  # an id beyond the vocabulary, which has no text
            return self._decoder.decode(b"".join(map(self._bytes_of, token_ids)))

    def finish(self) -> str:
        """Return U+FFFD if the tokens end inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)

    def _first_bytes_of(self, token_id: int) -> bytes:
        """Return the token's bytes; the first token with text loses SentencePiece's leading space."""
        raw = self._bytes_of(token_id)
        if self._has_started or not raw:
            return raw
        self._has_started = True
        return raw[1:] if self._tokenizer.has_leading_space(token_id) else raw

    def _bytes_of(self, token_id: int) -> bytes:
        return self._bytes[token_id] if token_id < len(self._bytes) else b""
