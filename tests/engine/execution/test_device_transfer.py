"""Copies on a CPU: no bytes move to it, and results come back as they were."""

import numpy as np
import torch

from engine.execution.device_transfer import HostArray, HostLists, to_device

CPU = torch.device("cpu")


def test_on_a_cpu_a_tensor_shares_the_arrays_memory() -> None:
    array = np.array([1, 2, 3])
    tensor = to_device(array, CPU)
    array[1] = 7
    assert tensor.tolist() == [1, 7, 3]


def test_results_come_back_in_order() -> None:
    copy = HostLists([torch.tensor([1, 2]), torch.tensor([[True], [False]]), torch.empty(0)])
    assert copy.wait() == [[1, 2], [[True], [False]], []]


def test_results_do_not_change_when_a_later_step_writes_to_the_tensors() -> None:
    ids, hidden = torch.tensor([1, 2]), torch.tensor([0.5])
    lists, array = HostLists([ids]), HostArray(hidden)
    ids += 1
    hidden += 1
    assert lists.wait() == [[1, 2]]
    assert array.wait().tolist() == [0.5]
