"""Token ids of one choice to text, as they come."""

import codecs
from collections.abc import Collection, Iterable, Sequence

from server.tokenizer.tokenizer import Tokenizer

MAX_UTF8_TAIL = 3  # bytes of a character that may still be open


class Detokenizer:
    """Gives text as soon as it is certain: never half a character, and nothing that a later token would change.

    Without a prompt, the deltas of `push` and `finish` together are `tokenizer.decode(ids)`, however the ids are split:
    a chat answer does not start with the space that SentencePiece puts in front of a text. With one, they are what
    follows the prompt: decode(prompt + ids) after decode(prompt). A completion of "It is a" by the token "▁truth" is
    " truth". A character whose first bytes end the prompt is given whole.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        prompt_token_ids: Sequence[int] = (),
        shown_ids: Collection[int] = (),
    ) -> None:
        """`shown_ids`: special tokens whose spelling is part of the text all the same."""
        self._tokenizer = tokenizer
        self._bytes = tokenizer.bytes_by_id(skip_special_tokens=skip_special_tokens)
        if shown_ids:
            self._bytes = [*self._bytes]
            for token_id in shown_ids:
                self._bytes[token_id] = tokenizer.token_bytes(token_id)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._has_started = any(self._shown(token_id) for token_id in prompt_token_ids)
        for token_id in prompt_token_ids[-MAX_UTF8_TAIL:]:
            self._decoder.decode(self._shown(token_id))

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete."""
        shown = self._shown if self._has_started else self._first_shown
        return self._decoder.decode(b"".join(map(shown, token_ids)))

    def finish(self) -> str:
        """U+FFFD where the tokens end inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)

    def _first_shown(self, token_id: int) -> bytes:
        """As long as nothing was shown."""
        shown = self._shown(token_id)
        if self._has_started or not shown:
            return shown
        self._has_started = True
        return shown[1:] if self._tokenizer.has_leading_space(token_id) else shown

    def _shown(self, token_id: int) -> bytes:
        return self._bytes[token_id] if token_id < len(self._bytes) else b""
