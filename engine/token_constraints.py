"""Constraints of a request on the tokens that may be sampled, as packed arrays.

They are packed once per HTTP request, sent as bytes, and read without a loop over their ids.
"""

from array import array
from collections.abc import Iterable, Mapping

import msgspec

INT32, FLOAT32 = "i", "f"  # type codes of array
ID_BYTES = 4


class TokenConstraints(msgspec.Struct, frozen=True, omit_defaults=True):
    """Biases, allowed tokens and bad words. All ids and lengths are int32 in the machine's byte order."""

    bias_ids: bytes = b""
    bias_values: bytes = b""  # float32, one for each of bias_ids, added to its logit
    allowed_ids: bytes | None = None  # None: all tokens are allowed
    bad_word_ids: bytes = b""  # of all words, one after the other; a word's last id is forbidden after its others
    bad_word_lengths: bytes = b""  # number of ids of each word

    @property
    def num_ids(self) -> int:
        """Number of token ids in all arrays."""
        num_bytes = len(self.bias_ids) + len(self.allowed_ids or b"") + len(self.bad_word_ids)
        return num_bytes // ID_BYTES

    @property
    def has_long_words(self) -> bool:
        """True if a bad word has several ids, so that the forbidden tokens depend on the last tokens."""
        return len(self.bad_word_ids) > len(self.bad_word_lengths)


NO_CONSTRAINTS = TokenConstraints()


def token_constraints(
    *,
    logit_bias: Mapping[int, float] | None = None,
    allowed_token_ids: Iterable[int] | None = None,
    bad_words: Iterable[Iterable[int]] = (),
) -> TokenConstraints:
    """Pack constraints. Each bad word is a list of token ids, not empty. Raises OverflowError beyond int32."""
    logit_bias = logit_bias or {}
    words = [list(word) for word in bad_words]
    return TokenConstraints(
        bias_ids=array(INT32, logit_bias.keys()).tobytes(),
        bias_values=array(FLOAT32, logit_bias.values()).tobytes(),
        allowed_ids=None if allowed_token_ids is None else array(INT32, allowed_token_ids).tobytes(),
        bad_word_ids=array(INT32, (token_id for word in words for token_id in word)).tobytes(),
        bad_word_lengths=array(INT32, map(len, words)).tobytes(),
    )
