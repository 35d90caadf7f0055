"""Copies between host and device that do not wait for the steps that the device computes."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]


def to_device(array: Array, device: torch.device) -> Tensor:
    """Copy the array to the device; on a CPU the tensor shares the array's memory. On a GPU the copy is queued behind
    the launched steps. It starts from pinned memory: a copy from pageable memory would wait for them."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class HostLists:
    """Results on their way to the host, as lists. The copy is queued at once, so that later steps neither delay it nor
    change it. On a CPU, where the results are there, the lists are made at once."""

    def __init__(self, results: Sequence[Tensor] | Sequence[Array]) -> None:
        """`results`: all in the same memory; on a CPU they may be arrays, which is faster."""
        first, self._lists, self._copies = results[0], None, None
        if isinstance(first, np.ndarray) or first.is_cpu:
            self._lists = [result.tolist() for result in results]
        elif first.is_cuda:
            self._copies = _PinnedCopies(cast("Sequence[Tensor]", results))

    def wait(self) -> list[list[Any]]:
        """Wait for the results and return them, in order."""
        if self._copies is not None:
            return [tensor.tolist() for tensor in self._copies.wait()]
        assert self._lists is not None, "a device without numbers has no results"
        return self._lists


class HostArray:
    """Like HostLists, of a single tensor, as an array."""

    def __init__(self, tensor: Tensor) -> None:
        self._array = tensor.numpy().copy() if tensor.is_cpu else None
        self._copies = _PinnedCopies([tensor]) if tensor.is_cuda else None

    def wait(self) -> Array:
        """Wait for the result and return it."""
        if self._copies is not None:
            return self._copies.wait()[0].numpy()
        assert self._array is not None, "a device without numbers has no results"
        return self._array


def _to_pinned(tensor: Tensor) -> Tensor:
    """Queue a copy to pinned memory of the host."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


class _PinnedCopies:
    """Copies of a GPU's tensors."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [_to_pinned(tensor) for tensor in tensors]
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record()

    def wait(self) -> list[Tensor]:
        self._arrived.synchronize()
        return self._tensors
