"""Copies on a CPU: no bytes move, and results come back as lists."""

import numpy as np
import torch

from engine.execution.device_transfer import HostCopy, to_device

CPU = torch.device("cpu")


def test_on_a_cpu_a_tensor_shares_the_arrays_memory() -> None:
    array = np.array([1, 2, 3])
    tensor = to_device(array, CPU)
    array[1] = 7
    assert tensor.tolist() == [1, 7, 3]


def test_results_come_back_in_order() -> None:
    copy = HostCopy([torch.tensor([1, 2]), torch.tensor([[True], [False]]), torch.empty(0)])
    assert copy.lists() == [[1, 2], [[True], [False]], []]
