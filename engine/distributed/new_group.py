"""The group of all ranks, by backend."""

from functools import partial

import torch
from torch.distributed import Store  # type: ignore[attr-defined]

from engine.distributed.host_ranks import NewGroup
from engine.distributed.mesh import connected_group
from engine.distributed.torch_group import TorchGroup
from model.cut import Cut
from model.group import Group


def group_maker(backend: str, device: torch.device) -> NewGroup:
    """Return what connects a rank on `device` to the others, and may raise GroupEndedError.

    Ranks of the native backend gather inside its library, over sockets; all others by torch.distributed: by NCCL
    between GPUs, by gloo between CPUs.
    """
    return connected_group if backend == "native" else partial(_torch_group, device)


def _torch_group(device: torch.device, cut: Cut, store: Store, address: str, timeout_s: float) -> Group:
    return TorchGroup(cut, store, device, timeout_s, address)
