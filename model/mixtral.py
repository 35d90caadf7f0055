"""Mixtral on one page: the network of "Mixtral of Experts" (2024), and of "Mistral 7B" (2023) where the FFN is dense.

    x = x + Attention(RMSNorm(x))
    x = x + FFN(RMSNorm(x))          one FFN, or the weighted sum of the k experts that the gate chooses for the token

It computes one step's rows for many sequences at once; what came before lies in the KV pool. How each operation is done
on this machine is a backend's business (model/ops).

Shape letters: T rows (token positions) of the batch, N rows with logits, D model dim, H heads, G KV heads, K head dim,
V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig
from model.forward_batch import ForwardBatch, Routing
from model.kv_pool import KvPool
from model.ops.interface import BatchMetadata, Ops, PackedWeights, RoutingRequest


@dataclass(frozen=True)
class LayerWeights:
    """One layer's weights, the matrices in the backend's form."""

    attention_norm: Tensor  # [D]
    qkv: PackedWeights  # D -> (H + 2G) * K: queries, keys, values
    output: PackedWeights  # H * K -> D
    ffn_norm: Tensor  # [D]
    ffn: PackedWeights  # the gate and its experts; or one dense FFN


@dataclass(frozen=True)
class MixtralWeights:
    """All weights of the network."""

    embedding: Tensor  # [V, D]
    layers: list[LayerWeights]
    norm: Tensor  # [D]
    head: PackedWeights  # D -> V


class Mixtral:
    """The network. Holds weights and no state: `forward` changes nothing but the KV pool and what the batch lends."""

    def __init__(self, config: ModelConfig, weights: MixtralWeights, ops: Ops) -> None:
        self.config = config
        self.weights = weights
        self.ops = ops
        self.on_layer: Callable[[], None] = lambda: None  # told of each layer: the step goes on

    @torch.no_grad()
    def forward(self, batch: ForwardBatch, kv_pool: KvPool) -> Tensor:
        """Compute one step: return the logits of batch.logit_rows, [N, V] float32.

        Writes K and V of all rows to their slots in the pool, and batch.routing.expert_ids and batch.finite if given.
        """
        eps = self.config.norm_eps
        choices = self._expert_choices(batch)
        plan = self.ops.prepare_batch(self.config, batch, kv_pool.block_size)
        x = self.ops.embed(batch.token_ids, self.weights.embedding)  # [T, D]
        for layer, k_cache, v_cache, choice in zip(self.weights.layers, kv_pool.k, kv_pool.v, choices, strict=True):
            x = x + self._attention(self.ops.rms_norm(x, layer.attention_norm, eps), layer, k_cache, v_cache, plan)
            x = x + self._feed_forward(self.ops.rms_norm(x, layer.ffn_norm, eps), layer, choice)  # [T, D]
            self.on_layer()
        if batch.finite is not None:  # what is no number in K, V or an expert stays none in the row's sum
            torch.all(x.isfinite(), 1, out=batch.finite)  # [T]
        return self.ops.logits(x, batch.logit_rows, self.weights.norm, eps, self.weights.head)  # [N, V]

    def _attention(
        self, x: Tensor, layer: LayerWeights, k_cache: Tensor, v_cache: Tensor, plan: BatchMetadata
    ) -> Tensor:
        """Grouped-query attention with rotary positions and, where the config has one, a sliding window."""
        qkv = self.ops.linear(x, layer.qkv)  # [T, (H + 2G) * K]
        q = self.ops.rope_and_store_kv(qkv, k_cache, v_cache, plan)  # [T, H, K]
        attended = self.ops.attention(q, k_cache, v_cache, plan)  # [T, H * K]
        return self.ops.linear(attended, layer.output)  # [T, D]

    def _feed_forward(self, x: Tensor, layer: LayerWeights, choice: RoutingRequest | None) -> Tensor:
        """The sparse mixture of experts; with k = E the classical dense mixture; with no experts one SwiGLU FFN."""
        if choice is None:
            return self.ops.ffn(x, layer.ffn)  # [T, D]
        return self.ops.moe(x, layer.ffn, choice)  # [T, D]

    def _expert_choices(self, batch: ForwardBatch) -> Sequence[RoutingRequest | None]:
        """What the rows ask of each layer's gate; None for the layers of a network without experts."""
        config = self.config
        if not config.num_experts:
            return [None] * config.num_layers
        routing = batch.routing or uniform_routing(config, len(batch.token_ids), batch.token_ids.device)
        k, expert_ids = routing.experts_per_token, routing.expert_ids
        if routing.masks is None or routing.mask_rows is None:
            return [RoutingRequest(k, None, expert_ids[layer]) for layer in range(config.num_layers)]
        allowed = routing.masks.transpose(0, 1).index_select(1, routing.mask_rows)  # [L, T, E]
        return [RoutingRequest(k, allowed[layer], expert_ids[layer]) for layer in range(config.num_layers)]


def uniform_routing(config: ModelConfig, num_rows: int, device: torch.device) -> Routing:
    """Every row takes the model's own number of experts, and none is switched off."""
    k = config.experts_per_token
    expert_ids = torch.empty(config.num_layers, num_rows, k, dtype=torch.int32, device=device)
    return Routing(torch.full((num_rows,), k, dtype=torch.int32, device=device), None, None, expert_ids)
