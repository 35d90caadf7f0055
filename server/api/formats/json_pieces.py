"""JSON in pieces: long lists are rendered in slices, and are not copied where a reply has or repeats them."""

from collections.abc import Callable, Sequence
from typing import Any

import orjson

Default = Callable[[object], orjson.Fragment]  # orjson's: returns the JSON of an object that it does not know

_MARK = b"\0"  # a byte that no JSON has
_PLACE = orjson.Fragment(_MARK)


class JsonList:
    """A list that was rendered in slices. `pieces` join to its JSON without the brackets."""

    def __init__(self, entries: Sequence[object] = ()) -> None:
        self.pieces: list[bytes] = []
        if entries:
            self.add(entries)

    def add(self, entries: Sequence[object]) -> None:
        """Append entries, of which there must be at least one."""
        self._append(orjson.dumps(entries)[1:-1])

    def extend(self, other: "JsonList") -> None:
        """Append the entries of another list."""
        for index, piece in enumerate(other.pieces):
            if index == 0:
                self._append(piece)
            else:
                self.pieces.append(piece)

    def _append(self, entries: bytes) -> None:
        self.pieces.append(b"," + entries if self.pieces else entries)


def joined(value: object) -> orjson.Fragment:
    """Return the JSON of a JsonList, as orjson's `default`. Raises TypeError for any other object."""
    return orjson.Fragment(b"".join([b"[", *_list(value).pieces, b"]"]))


def in_pieces(value: object, encode: Callable[[Any, Default], bytes] = orjson.dumps) -> list[bytes]:
    """Return `encode(value, default)` in pieces, of which those of each JsonList inside are its own."""
    lists: list[JsonList] = []

    def place_of(part: object) -> orjson.Fragment:
        lists.append(_list(part))
        return _PLACE

    first, *others = encode(value, place_of).split(_MARK)
    pieces = [first]
    for part, other in zip(lists, others, strict=True):
        pieces += [b"[", *part.pieces, b"]", other]
    return pieces


def _list(value: object) -> JsonList:
    if not isinstance(value, JsonList):
        raise TypeError(f"{type(value).__name__} is no JSON")
    return value
