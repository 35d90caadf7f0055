"""A group of ranks that compute one network together, each the part of model/cut.py.

Nothing crosses ranks but gathers: a rank computes some columns of a result, and then gets all of them. No sum is
divided among ranks, so the bits are the same for any number of them.
"""

from typing import Protocol

from torch import Tensor

from model.cut import WHOLE, Cut


class GroupEndedError(Exception):
    """Another rank of the group is gone. Nothing can be computed any more."""


class Group(Protocol):
    """The ranks, as seen by one of them. All ranks gather the same results in the same order."""

    cut: Cut  # the part of this rank

    def gather(self, part: Tensor, width: int, unit: int) -> Tensor:
        """Join the columns cut.part(width, unit) of each rank: [T, columns] -> [T, width], on every rank.

        Raises GroupEndedError.
        """


class Alone:
    """A single rank, which has all."""

    cut = WHOLE

    def gather(self, part: Tensor, width: int, unit: int) -> Tensor:
        return part


ALONE = Alone()


class Unconnected:
    """A rank whose group does not exist: for networks without numbers, whose gathers have shapes only."""

    def __init__(self, cut: Cut) -> None:
        self.cut = cut

    def gather(self, part: Tensor, width: int, unit: int) -> Tensor:
        return part.new_empty(len(part), width)
