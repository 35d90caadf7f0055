"""Routing requests for tests, and a naive gate."""

import torch
from torch import Tensor

from model.ops.interface import RoutingRequest


def uniform_request(num_rows: int, k: int) -> RoutingRequest:
    """Request k experts for every row, none switched off."""
    return routing_request([k] * num_rows)


def routing_request(experts_per_token: list[int], allowed: Tensor | None = None) -> RoutingRequest:
    """Request experts per row, with `allowed` [T, E]. expert_ids starts as -7, which no gate writes."""
    expert_ids = torch.full((len(experts_per_token), max(experts_per_token)), -7, dtype=torch.int32)
    return RoutingRequest(torch.tensor(experts_per_token, dtype=torch.int32), allowed, expert_ids)


def random_request(num_rows: int, num_experts: int, seed: int = 0) -> RoutingRequest:
    """Request a random k for each row, under random masks that leave each row at least k experts."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    k = (torch.randint(num_experts, (num_rows,), generator=generator) + 1).tolist()
    ranks = torch.rand(num_rows, num_experts, generator=generator).argsort(-1).argsort(-1)  # a permutation per row
    spare = torch.rand(num_rows, num_experts, generator=generator) < 0.5
    return routing_request(k, (ranks < torch.tensor(k)[:, None]) | spare)


def naive_top_k(logits: list[float], k: int, allowed: list[bool] | None = None) -> list[int]:
    """Return the k best of the allowed experts, best first, ties to the lower id."""
    ids = [e for e in range(len(logits)) if allowed is None or allowed[e]]
    return sorted(ids, key=lambda e: (-logits[e], e))[:k]
