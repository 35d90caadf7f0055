"""A group of ranks with a device each: gathers by torch.distributed, by NCCL between GPUs and by gloo between CPUs.

No GPU has run this. The same lines run over gloo in tests; what NCCL does differently is stated where it matters.
"""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]

from model.cut import Cut, all_cuts
from model.forward_batch import ForwardBatch
from model.group import GroupEndedError
from model.kv_pool import KvPool
from model.mixtral import Mixtral


class TorchGroup:
    """Implementation of model.group.Group for tensors on `device`. Not thread-safe: one call at a time.

    On GPUs every call is queued on the current stream, and the host does not wait for it. So a CUDA graph can contain
    gathers, if one was made before: NCCL connects ranks at the first call, which no graph may contain. All ranks must
    make the same calls in the same order, whether a graph makes them or not.
    """

    def __init__(self, cut: Cut, store: Store, device: torch.device, timeout_s: float, address: str = "") -> None:
        """Create the group, as all other ranks do at this time. `store`: shared by these ranks, and used for nothing
        else; `timeout_s`: limit of each wait for another rank; `address`: on CPUs, that of this host.

        Raises GroupEndedError.
        """
        self.cut = cut
        store.set_timeout(timedelta(seconds=timeout_s))
        try:
            create = _nccl if device.type == "cuda" else _gloo
            self._backend: Any = create(cut, store, timeout_s, address)
        except RuntimeError as error:
            raise _ended(error) from None

    def gather(self, part: Tensor, width: int, unit: int) -> Tensor:
        if not len(part):
            return part.new_empty(0, width)
        sizes = [len(cut.part(width, unit)) for cut in all_cuts(self.cut.size)]
        widest = max(sizes)  # a collective has equal parts: narrower ones get columns that nobody reads
        padded = F.pad(part, (0, widest - part.shape[1])).contiguous()  # [T, widest]
        gathered = part.new_empty(len(sizes), *padded.shape)
        self._run(self._backend._allgather_base, gathered.view(-1, widest), padded)
        if min(sizes) == widest:
            return gathered.transpose(0, 1).reshape(len(part), width)
        return torch.cat([rows[:, :size] for rows, size in zip(gathered, sizes, strict=True)], 1)  # [T, width]

    def broadcast(self, values: Tensor) -> None:
        """Overwrite `values` with those of rank 0, which has the same shape there. Raises GroupEndedError."""
        self._run(self._backend.broadcast, values, 0)

    def _run(self, collective: Any, *arguments: Any) -> None:
        """Queue a collective. wait() waits on the host for gloo; for NCCL it lets the current stream wait."""
        try:
            collective(*arguments).wait()
        except RuntimeError as error:
            raise _ended(error) from None


class SharedTokensMixtral(Mixtral):
    """The network of a rank with a device of its own. The token ids of a step come from rank 0's device to the others',
    behind the step that samples them. So rank 0 tells a step before any host knows its ids, as asynchronous scheduling
    does, and the other ranks need no sampler."""

    def __init__(self, model: Mixtral, group: TorchGroup) -> None:
        super().__init__(model.config, model.weights, model.ops, group)
        self._model = model
        self._tokens_of = group

    def forward(self, batch: ForwardBatch, kv_pool: KvPool) -> Tensor:
        """Compute one step, like Mixtral.forward. Writes rank 0's ids to `batch.token_ids`."""
        self._tokens_of.broadcast(batch.token_ids)
        return self._model.forward(batch, kv_pool)


def _gloo(cut: Cut, store: Store, timeout_s: float, address: str) -> Any:
    gloo: Any = torch.distributed.ProcessGroupGloo
    options = gloo._Options()
    options._timeout = timedelta(seconds=timeout_s)
    options._devices = [gloo.create_device(hostname=address)]  # not the interface that the host's name leads to
    return gloo(store, cut.rank, cut.size, options)


def _nccl(cut: Cut, store: Store, timeout_s: float, address: str) -> Any:
    nccl: Any = torch.distributed.ProcessGroupNCCL
    options = nccl.Options()
    options._timeout = timedelta(seconds=timeout_s)
    return nccl(store, cut.rank, cut.size, options)


def _ended(error: RuntimeError) -> GroupEndedError:
    reason = str(error).partition("\n")[0]
    return GroupEndedError(f"a gather among the ranks failed: {reason}")
