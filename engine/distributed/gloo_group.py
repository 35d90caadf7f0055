"""A group of ranks on several hosts: gathers over TCP, by torch.distributed's gloo."""

from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo, Store, Work  # type: ignore[attr-defined]

from model.cut import Cut, all_cuts
from model.group import GroupEndedError


class GlooGroup:
    """Implementation of model.group.Group. Each rank sends its part to every other one. Not thread-safe: one gather at
    a time."""

    def __init__(self, cut: Cut, store: Store, address: str, timeout_s: float) -> None:
        """Connect to all other ranks, which do the same at this time. `store`: shared by these ranks, and used for
        nothing else; `address`: of this host, which the others reach; `timeout_s`: limit of each wait for another rank.

        Raises GroupEndedError.
        """
        self.cut = cut
        self.timeout_s = timeout_s
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timedelta(seconds=timeout_s)
        store.set_timeout(timedelta(seconds=timeout_s))
        try:
            # By address: gloo would take the interface that the host's name leads to, which may be loopback.
            options._devices = [ProcessGroupGloo.create_device(hostname=address)]
            self._gloo: Any = ProcessGroupGloo(store, cut.rank, cut.size, options)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise GroupEndedError(f"the ranks cannot connect to each other: {reason}") from None

    def gather(self, part: Tensor, width: int, unit: int) -> Tensor:
        if not len(part):
            return part.new_empty(0, width)
        columns = [cut.part(width, unit) for cut in all_cuts(self.cut.size)]
        parts = [part.new_empty(len(part), len(of_rank)) for of_rank in columns]
        parts[self.cut.rank] = part.contiguous()
        self._exchange(parts)
        return torch.cat(parts, 1)  # [T, width]

    def _exchange(self, parts: list[Tensor]) -> None:
        """Send this rank's part to the other ranks and receive theirs into `parts`."""
        own, timeout = self.cut.rank, timedelta(seconds=self.timeout_s)
        others = [rank for rank in range(self.cut.size) if rank != own]
        rank = others[0]
        works: list[tuple[int, Work]] = []
        try:
            for rank in others:
                works.append((rank, self._gloo.recv([parts[rank]], rank, 0)))
                works.append((rank, self._gloo.send([parts[own]], rank, 0)))
            for entry in works:
                rank, work = entry
                work.wait(timeout)
        except RuntimeError as error:
            raise GroupEndedError(self._reason(rank, error)) from None

    def _reason(self, rank: int, error: RuntimeError) -> str:
        if "timed out" in str(error).lower():
            return f"rank {rank} did not answer for {self.timeout_s:g} s"
        return f"the connection to rank {rank} broke"
