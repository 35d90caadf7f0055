"""The network on one page: Mixtral (Jiang et al. 2024), and Mistral 7B (Jiang et al. 2023) where the FFN is dense.

Each layer computes

    x = x + Attention(RMSNorm(x))
    x = x + FFN(RMSNorm(x))          one FFN, or the weighted sum of the k experts that the gate chooses for the token

An output that is still to be added to x is `pending`: the next norm adds it, so that a backend can do both at once.
`Mixtral.forward` runs one step: it takes the new rows of many sequences at once and finds the earlier positions of each
sequence in the KV pool. The operations themselves (`self.ops`) belong to a backend: model/ops/interface.py
describes each one, model/ops/reference/ops.py defines it in plain torch.

Shape letters: T rows (token positions) of the batch, N rows with logits, L layers, D model dim, H heads, G KV heads,
K head dim, E experts, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig
from model.cut import PANEL
from model.forward_batch import ForwardBatch, GateRows, Routing
from model.group import ALONE, Group
from model.kv_pool import KvPool
from model.lora.rows import LayerTerms, terms_of_layer
from model.ops.interface import BatchMetadata, Ops, PackedWeights, Pending, RoutingRequest


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one layer; matrices are packed by the backend."""

    attention_norm: Tensor  # [D]
    qkv: PackedWeights  # D -> (H + 2G) * K: queries, keys, values
    output: PackedWeights  # H * K -> D
    ffn_norm: Tensor  # [D]
    ffn: PackedWeights  # gate and experts, or one dense FFN


@dataclass(frozen=True)
class MixtralWeights:
    """All weights of the network."""

    embedding: Tensor  # [V, D]; float16 or bfloat16 where norms are wider
    layers: list[LayerWeights]
    norm: Tensor  # [D] in the dtype of residuals: the embedding's, or float32
    head: PackedWeights  # D -> V

    @property
    def query_dtype(self) -> torch.dtype:
        """The dtype of queries: that of the sums between layers, or bfloat16 if these are wider than the embedding."""
        return self.norm.dtype if self.norm.dtype == self.embedding.dtype else torch.bfloat16


class Mixtral:
    """The network: config, weights and backend. No result depends on an earlier step, but through the caches.

    As a rank of a group it has a part of the outputs of every matrix (model/cut.py), and a KV pool with its own heads.
    """

    def __init__(self, config: ModelConfig, weights: MixtralWeights, ops: Ops, group: Group = ALONE) -> None:
        self.config = config  # of the whole network
        self.weights = weights
        self.ops = ops
        self.group = group
        self.on_layer: Callable[[], None] = lambda: None  # called after each layer, as a sign of progress

    @torch.no_grad()
    def forward(self, batch: ForwardBatch, kv_pool: KvPool) -> Tensor:
        """Compute one step and return the logits of batch.logit_rows, [N, V] float32.

        Writes the rows' K and V to their slots in the pool, and batch.routing.expert_ids, batch.finite,
        batch.hidden.states and batch.gates.logits if given.
        """
        eps = self.config.norm_eps
        requests = self._routing_requests(batch)
        metadata = self.ops.prepare_batch(self.group.cut.with_own_heads(self.config), batch, kv_pool.block_size)
        layers = self.weights.layers
        norms = [*(layer.attention_norm for layer in layers), self.weights.norm]
        x = self.ops.embed(batch.token_ids, self.weights.embedding).to(self.weights.norm.dtype)  # [T, D]
        normed = self.ops.rms_norm(x, norms[0], eps)
        steps = zip(layers, kv_pool.k, kv_pool.v, requests, norms[1:], strict=True)
        for index, (layer, k_cache, v_cache, request, norm_behind) in enumerate(steps):
            terms = terms_of_layer(batch.adapters, index)
            pending = self._attention(normed, layer, k_cache, v_cache, metadata, terms)
            if batch.gates is not None:
                self._report_gate(x, pending, layer, batch.gates, index)
            x, pending = self._feed_forward(x, pending, layer, request, terms)
            x, normed = self.ops.add_rms_norm(x, pending, norm_behind, eps)  # [T, D] each
            self.on_layer()
        if batch.finite is not None:  # a NaN or Inf in K, V or an expert makes the row's residual sum NaN or Inf too
            torch.all(x.isfinite(), 1, out=batch.finite)  # [T]
        if batch.hidden is not None:
            batch.hidden.states.copy_(normed.index_select(0, batch.hidden.rows))  # [P, D]
        logits = self.ops.logits(normed, batch.logit_rows, self.weights.head)
        return self.group.gather(logits, self.config.vocab_size, PANEL)  # [N, V]

    def _attention(
        self,
        x: Tensor,
        layer: LayerWeights,
        k_cache: Tensor,
        v_cache: Tensor,
        metadata: BatchMetadata,
        terms: LayerTerms,
    ) -> Pending:
        """Grouped-query attention with rotary positions and, if the config has one, a sliding window."""
        qkv = self.ops.linear(x, layer.qkv, terms.qkv)  # [T, (H + 2G) * K]
        q = self.ops.rope_and_store_kv(qkv, k_cache, v_cache, metadata)  # [T, H, K]
        q = q.to(self.weights.query_dtype)
        attended = self.ops.attention(q, k_cache, v_cache, metadata, x.dtype)  # [T, H * K]
        width, num_kv_heads = self.config.num_heads * self.config.head_dim, self.config.num_kv_heads
        attended = self.group.gather(attended, width, width // num_kv_heads)  # [T, H * K]
        return self._gathered(self.ops.linear(attended, layer.output, terms.output))  # [T, D]

    def _feed_forward(
        self,
        x: Tensor,
        pending: Pending,
        layer: LayerWeights,
        request: RoutingRequest | None,
        terms: LayerTerms,
    ) -> tuple[Tensor, Pending]:
        """Add attention's output to x, then apply the sparse mixture of experts (dense if k = E), or the single FFN."""
        norm, eps, group = layer.ffn_norm, self.config.norm_eps, self.group
        if request is not None:
            x, y = self.ops.add_norm_moe(x, pending, norm, eps, layer.ffn, request, group, terms.ffn)
        else:
            x, normed = self.ops.add_rms_norm(x, pending, norm, eps)
            y = self.ops.ffn(normed, layer.ffn, group, terms.ffn)
        return x, self._gathered(y)

    def _gathered(self, pending: Pending) -> Pending:
        """Join the columns of a pending output, [T, D]. A rank alone leaves the sum to the op that takes it."""
        if self.group.cut.size == 1:
            return pending
        return self.group.gather(self.ops.summed(pending), self.config.dim, PANEL)

    def _report_gate(self, x: Tensor, pending: Pending, layer: LayerWeights, gates: GateRows, index: int) -> None:
        """Write the gate logits of one layer: of the norm that _feed_forward computes again, so that no bit of the step
        depends on the report."""
        _, normed = self.ops.add_rms_norm(x, pending, layer.ffn_norm, self.config.norm_eps)  # [T, D]
        gates.logits[index].copy_(self.ops.gate_logits(normed.index_select(0, gates.rows), layer.ffn))  # [P, E]

    def _routing_requests(self, batch: ForwardBatch) -> Sequence[RoutingRequest | None]:
        """Return one RoutingRequest per layer, or None for each layer of a network without experts."""
        config = self.config
        if not config.num_experts:
            return [None] * config.num_layers
        routing = batch.routing or uniform_routing(config, len(batch.token_ids), batch.token_ids.device)
        k, expert_ids = routing.experts_per_token, routing.expert_ids  # [T], [L, T, Kmax]
        if routing.masks is None or routing.mask_rows is None:
            return [RoutingRequest(k, None, expert_ids[layer]) for layer in range(config.num_layers)]
        allowed = routing.masks.transpose(0, 1).index_select(1, routing.mask_rows)  # [L, T, E]
        return [RoutingRequest(k, allowed[layer], expert_ids[layer]) for layer in range(config.num_layers)]


def uniform_routing(config: ModelConfig, num_rows: int, device: torch.device) -> Routing:
    """Return a Routing with the model's own number of experts for every row and all experts switched on."""
    k = config.experts_per_token
    expert_ids = torch.empty(config.num_layers, num_rows, k, dtype=torch.int32, device=device)
    return Routing(torch.full((num_rows,), k, dtype=torch.int32, device=device), None, None, expert_ids)
