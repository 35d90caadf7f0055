"""Change an input at random: bits, bytes, cuts, copies, numbers, pieces of other inputs and of a dictionary."""

import random
from collections.abc import Callable, Sequence

MAX_BYTES = 1 << 14
NUMBERS = (b"0", b"-1", b"1e999", b"9223372036854775808", b"4294967296", b"0.1", b"-0")

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]


def mutated(rng: random.Random, data: bytes, pieces: Sequence[bytes]) -> bytes:
    """Return `data` after one to four changes. `pieces`: other inputs, and words that the parser knows."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(MUTATIONS)(rng, data, pieces)[:MAX_BYTES]
    return data


def _place(rng: random.Random, data: bytes) -> tuple[int, int]:
    """Return a slice; short ones are more likely."""
    start = rng.randint(0, len(data))
    return start, min(len(data), start + rng.choice((0, 1, 2, 4, 8, 32, 128)))


def _flip(rng: random.Random, data: bytes, pieces: Sequence[bytes]) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: random.Random, data: bytes, pieces: Sequence[bytes]) -> bytes:
    start, end = _place(rng, data)
    return data[:start] + rng.choice((b"\0", b"\xff", b"\r\n", b"{", b"]", b'"', b"%", b"\xed\xa0\x80")) + data[end:]


def _cut(rng: random.Random, data: bytes, pieces: Sequence[bytes]) -> bytes:
    start, end = _place(rng, data)
    return data[:start] + data[end:]


def _repeat(rng: random.Random, data: bytes, pieces: Sequence[bytes]) -> bytes:
    start, end = _place(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 3, 100)) + data[end:]


def _number(rng: random.Random, data: bytes, pieces: Sequence[bytes]) -> bytes:
    digits = [place for place, byte in enumerate(data) if 48 <= byte <= 57]
    if not digits:
        return data
    place = rng.choice(digits)
    return data[:place] + rng.choice(NUMBERS) + data[place + 1 :]


def _insert(rng: random.Random, data: bytes, pieces: Sequence[bytes]) -> bytes:
    piece = rng.choice(pieces)
    start, end = _place(rng, piece)
    where = rng.randint(0, len(data))
    return data[:where] + (piece if rng.random() < 0.5 else piece[start:end]) + data[where:]


def _splice(rng: random.Random, data: bytes, pieces: Sequence[bytes]) -> bytes:
    other = rng.choice(pieces)
    return data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]


MUTATIONS: tuple[Mutation, ...] = (_flip, _overwrite, _cut, _repeat, _number, _insert, _splice)
