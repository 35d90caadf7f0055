"""Copies between host and device that do not wait for the steps that the device computes."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray[Any, np.dtype[Any]], device: torch.device) -> Tensor:
    """Copy the array to the device; on a CPU the tensor shares the array's memory. On a GPU the copy is queued behind
    the launched steps. It starts from pinned memory: a copy from pageable memory would wait for them."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class HostCopy:
    """Results on their way to the host. The copy is queued at once, so that steps launched later do not delay it."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = list(tensors)
        self._arrived: torch.cuda.Event | None = None
        if self._tensors[0].is_cuda:
            self._tensors = [_to_pinned(tensor) for tensor in self._tensors]
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def lists(self) -> list[list[Any]]:
        """Wait for the results and return them as lists, in order."""
        self._wait()
        return [tensor.tolist() for tensor in self._tensors]

    def arrays(self) -> list[np.ndarray[Any, np.dtype[Any]]]:
        """Wait for the results and return them as arrays, in order."""
        self._wait()
        return [tensor.numpy() for tensor in self._tensors]

    def _wait(self) -> None:
        if self._arrived is not None:
            self._arrived.synchronize()


def _to_pinned(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
