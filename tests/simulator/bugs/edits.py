"""Hand-made bugs as edits of the product's source."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """Replacement of source text. `where`: module:function or module:Class.method.

    A module that begins neither with `engine.` nor with `server.` is one of `engine`.
    """

    where: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutation:
    """One bug: its name, and the edits that make it."""

    name: str
    edits: tuple[Edit, ...]


def bug(name: str, where: str, old: str, new: str) -> Mutation:
    return Mutation(name, (Edit(where, old, new),))
