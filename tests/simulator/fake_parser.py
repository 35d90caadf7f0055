"""Grammar over token ids for the exact model: behind each text it allows the model's next token and a third of those
with higher ids, so that the mask of any other text forbids the token that the model samples more often than not."""

from collections.abc import Callable, Sequence

from tests.simulator.exact import mix


class FakeParser:
    """Fake of llguidance.LLMatcher. A token that is forbidden behind its text is an error, and stays one."""

    def __init__(
        self, oracle: Callable[[], list[int]] | None, vocab: int, errors: list[str], text: tuple[int, ...] = ()
    ) -> None:
        """`oracle` returns the tokens that the model generates; None: every token is allowed. `errors` gets a line for
        each forbidden token: whoever reads the mask first consumes none."""
        self._oracle = oracle
        self._vocab = vocab
        self._errors = errors
        self._text = text
        self._is_broken = False

    def deep_copy(self) -> "FakeParser":
        copied = FakeParser(self._oracle, self._vocab, self._errors, self._text)
        copied._is_broken = self._is_broken
        return copied

    def consume_tokens(self, token_ids: Sequence[int]) -> bool:
        for token_id in token_ids:
            if not self._allows(token_id):
                self._is_broken = True
                self._errors.append(f"token {token_id} is forbidden behind {self._text}")
            self._text += (token_id,)
        return not self._is_broken

    def compute_bitmask(self) -> bytes:
        bits = sum(1 << token_id for token_id in range(self._vocab) if self._allows(token_id))
        return bits.to_bytes(4 * -(-self._vocab // 32), "little")

    def is_error(self) -> bool:
        return self._is_broken

    def get_error(self) -> str:
        return f"a token is forbidden behind those before it: {self._text}"

    def _allows(self, token_id: int) -> bool:
        if self._oracle is None:
            return True
        tokens, length = self._oracle(), len(self._text)
        lowest = tokens[length] if length < len(tokens) and self._text == tuple(tokens[:length]) else 0
        return token_id == lowest or (token_id > lowest and mix(token_id, *self._text) % 3 == 0)


class FakeForcedText:
    """Fake of ForcedText: the text goes on with the lowest allowed token, which is right, or sometimes the next one.
    A token's text is the byte of its id."""

    def longest(self, mask: bytes) -> int | None:
        bits = int.from_bytes(mask, "little")
        if bits.bit_count() % 3 == 1:
            bits &= bits - 1
        return (bits & -bits).bit_length() - 1 if bits else None

    def text(self, token_id: int) -> bytes:
        return bytes([token_id])

    @property
    def usual(self) -> "FakeForcedText":
        return self

    def split(self, text: bytes) -> list[int]:
        return list(text)
