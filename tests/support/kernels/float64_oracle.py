"""Ops of the network in float64, by their formulas: the oracle of all backends."""

import torch
from torch import Tensor

from model.ops.interface import FfnWeights


def relative_error(ours: Tensor, oracle: Tensor) -> float:
    """Return |ours - oracle| / |oracle| over all numbers together."""
    assert ours.isfinite().all()
    return float((ours.double() - oracle).norm() / oracle.norm())


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.double()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def linear(x: Tensor, weight: Tensor) -> Tensor:
    return x.double() @ weight.double().T


def ffn(x: Tensor, weights: FfnWeights) -> Tensor:
    gate = linear(x, weights.w1)
    return linear(gate / (1 + (-gate).exp()) * linear(x, weights.w3), weights.w2)


def moe(x: Tensor, gate: Tensor, experts: list[FfnWeights], k: list[int], allowed: Tensor | None = None) -> Tensor:
    """Compute the mixture; k per row, allowed [T, E]. All experts see all tokens; those not chosen have weight 0."""
    logits = linear(x, gate)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, float("-inf"))
    last = torch.stack([row.sort(descending=True).values[count - 1] for row, count in zip(logits, k, strict=True)])
    share = logits.masked_fill(logits < last[:, None], float("-inf")).softmax(-1)
    return torch.stack([share[:, e, None] * ffn(x, expert) for e, expert in enumerate(experts)]).sum(0)


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotate x [T, heads, K]; pair i consists of the numbers i and i + K/2."""
    num_pairs = x.shape[-1] // 2
    angles = positions.double()[:, None] * theta ** (-torch.arange(num_pairs).double() / num_pairs)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x.double().split(num_pairs, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor, first: int, window: int | None) -> Tensor:
    """Attend: q [rows, H, K] at positions first, first + 1, ... over k and v [length, G, K] -> [rows, H * K]."""
    copies = q.shape[1] // k.shape[1]
    keys, values = (cached.double().repeat_interleave(copies, dim=1) for cached in (k, v))
    out = []
    for row, query in enumerate(q.double()):
        end = first + row + 1
        begin = max(0, end - window) if window else 0
        scores = torch.einsum("hk,lhk->hl", query, keys[begin:end]) / q.shape[2] ** 0.5
        out.append(torch.einsum("hl,lhk->hk", scores.softmax(-1), values[begin:end]).flatten())
    return torch.stack(out)
