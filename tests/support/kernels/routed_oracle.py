"""transformers' Mixtral with any number of experts per token and with expert masks, as an oracle."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

Mask = list[list[bool]]


@contextmanager
def routed(model: Any, k: int, mask: Mask | None = None) -> Iterator[list[list[Tensor]]]:
    """Let the model use k experts per token; yield per layer the expert ids [rows, k] of its gates."""
    gates = [layer.mlp.gate for layer in model.model.layers]
    found: list[list[Tensor]] = [[] for _ in gates]
    before = [(gate.top_k, gate.forward) for gate in gates]
    for index, gate in enumerate(gates):
        gate.top_k = k
        gate.forward = partial(_forward, gate, None if mask is None else mask[index], found[index])
    try:
        yield found
    finally:
        for gate, (top_k, forward) in zip(gates, before, strict=True):
            gate.top_k, gate.forward = top_k, forward


def _forward(gate: Any, allowed: list[bool] | None, found: list[Tensor], hidden: Tensor) -> tuple[Tensor, ...]:
    """Apply the gate's rule to the enabled experts: the k largest logits, softmax over them."""
    logits = hidden.reshape(-1, gate.hidden_dim) @ gate.weight.T
    if allowed is not None:
        logits[:, ~torch.tensor(allowed)] = float("-inf")
    best = logits.sort(descending=True, stable=True)
    found.append(best.indices[:, : gate.top_k])
    return logits, best.values[:, : gate.top_k].softmax(-1), best.indices[:, : gate.top_k]


@torch.no_grad()
def forward(model: Any, ids: list[int], k: int, mask: Mask | None = None) -> tuple[Tensor, list[list[list[int]]]]:
    """Return logits [T, V] and the expert ids [T][L][k] of every position."""
    with routed(model, k, mask) as found:
        logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    layers = torch.stack([torch.cat(layer_ids) for layer_ids in found])  # [L, T, k]
    return logits, layers.swapaxes(0, 1).tolist()


@torch.no_grad()
def gate_logits(model: Any, ids: list[int], k: int, mask: Mask | None = None) -> Tensor:
    """Return the gate logits [T, L, E] of every position: gate weights times the gate's input, before any mask."""
    found: list[Tensor] = []
    gates = [layer.mlp.gate for layer in model.model.layers]
    keep = lambda gate, given: found.append(given[0].reshape(-1, gate.hidden_dim) @ gate.weight.T)  # noqa: E731
    hooks = [gate.register_forward_pre_hook(keep) for gate in gates]
    try:
        forward(model, ids, k, mask)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found, dim=1)
