"""Split a text as byte pair encoding would, to guess which tokens a model writes it in."""

from itertools import pairwise

from engine.types import Vocabulary

NEVER = 1 << 62  # rank of a pair that is no token


class UsualTokens:
    """Byte pair encoding whose merges come in the order of the token ids, as most vocabularies number them
    (SentencePiece's and GPT-2's do). Good enough for guesses: rules that split words before the merges are left out.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        special_ids, tokens = set(vocabulary.special_ids), vocabulary.tokens
        byte_ids = _byte_ids(tokens)
        others = (i for i in range(len(tokens)) if i not in byte_ids)  # a byte is the last resort
        self._ids: dict[bytes, int] = {tokens[i]: i for i in (*byte_ids, *others) if tokens[i] and i not in special_ids}

    def split(self, text: bytes) -> list[int]:
        """Return the token ids of a text; those of its start if a character has no token."""
        parts = self._smallest(text)
        ranks = [self._rank(*pair) for pair in pairwise(parts)]
        while ranks and (best := min(ranks)) < NEVER:
            place = ranks.index(best)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
            del ranks[place]
            for left in (place - 1, place):
                if 0 <= left < len(ranks):
                    ranks[left] = self._rank(parts[left], parts[left + 1])
        return [self._ids[part] for part in parts]

    def _rank(self, left: bytes, right: bytes) -> int:
        return self._ids.get(left + right, NEVER)

    def _smallest(self, text: bytes) -> list[bytes]:
        """Split a text into characters that are tokens, and bytes where a character is none."""
        parts: list[bytes] = []
        for character in text.decode("utf-8", "surrogateescape"):
            encoded = character.encode("utf-8", "surrogateescape")
            for part in [encoded] if encoded in self._ids else [encoded[i : i + 1] for i in range(len(encoded))]:
                if part not in self._ids:
                    return parts
                parts.append(part)
        return parts


def _byte_ids(tokens: list[bytes]) -> range:
    """Return the ids of SentencePiece's tokens for single bytes, which follow each other; empty without them."""
    zero = tokens.index(b"\0") if b"\0" in tokens else 0
    ids = range(zero, zero + 256)
    return ids if tokens[zero : zero + 256] == [bytes([byte]) for byte in range(256)] else range(0)
