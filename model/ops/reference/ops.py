"""The definition of every op, in plain torch on any device.

Activations are float32 or bfloat16; weights are of the same dtype, int8 or int4. The bits of a row may differ from
batch to batch. Shape letters as in model/ops/interface.py; Kmax the largest number of experts of any row, P pairs of a
row and one of its experts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.cut import PANEL
from model.forward_batch import ForwardBatch
from model.group import ALONE, Group
from model.kv_format import KvDtype, KvLayout
from model.lora.rows import RowTerms, with_terms
from model.ops.interface import FfnWeights, RoutingRequest
from model.ops.quantization import Quantization, QuantizedMatrix, multiply, quantize
from model.ops.reference.attention import AttentionPlan, attend, plan_attention
from model.ops.reference.kv_int8 import as_cached
from model.ops.reference.sampling import sample
from model.ops.weights import Weight, stacked
from model.sampling_batch import SampledRows, SamplingRows

Matrix: TypeAlias = Tensor | QuantizedMatrix  # [O, D]


@dataclass(frozen=True)
class ReferenceFfn:
    """One FFN; w1 and w3 share a matrix, because one product computes both."""

    w13: Matrix  # [2F, D]
    w2: Matrix  # [D, F]


@dataclass(frozen=True)
class ReferenceMoe:
    """Gate and experts. The gate stays in float32, so that its rounding does not decide which experts a token gets."""

    gate: Tensor  # [E, D] float32
    experts: list[ReferenceFfn]


@dataclass(frozen=True)
class ReferenceMetadata:
    """Rotary angles, slots and attention spans of one batch."""

    num_kv_heads: int
    head_dim: int
    cos: Tensor  # [T, 1, K] float32
    sin: Tensor  # [T, 1, K] float32
    slot_mapping: Tensor  # [T]
    attention: AttentionPlan


class ReferenceOps:
    """Implementation of model.ops.interface.Ops in plain torch."""

    block_formats: frozenset[str] = frozenset()
    packs_streams = False

    def __init__(self, quantization: Quantization = "none") -> None:
        """`quantization` applies to the weights that this object packs."""
        self._quantization = quantization

    def pack_linear(self, *weights: Weight) -> Matrix:
        weight = stacked(weights)
        return weight if self._quantization == "none" else quantize(weight, self._quantization)

    def pack_ffn(self, weights: FfnWeights) -> ReferenceFfn:
        return ReferenceFfn(self.pack_linear(weights.w1, weights.w3), self.pack_linear(weights.w2))

    def pack_moe(self, gate: Tensor, experts: Iterable[FfnWeights]) -> ReferenceMoe:
        return ReferenceMoe(gate.float(), list(map(self.pack_ffn, experts)))

    def kv_layout(self, dtype: KvDtype, block_size: int) -> KvLayout:
        del dtype, block_size
        return "rows"

    def prepare_batch(self, config: ModelConfig, batch: ForwardBatch, block_size: int) -> ReferenceMetadata:
        cos, sin = rotary_angles(
            batch.positions, config.head_dim, config.rope_theta, config.rope_divisors, config.rope_factor
        )
        attention = plan_attention(batch, block_size, config.window, config.num_heads, config.head_dim)
        return ReferenceMetadata(config.num_kv_heads, config.head_dim, cos, sin, batch.slot_mapping, attention)

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        return F.embedding(token_ids, table)  # [T, D]

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)  # [T, 1]
        return weight * (wide * scale).to(x.dtype)  # [T, D]

    def add_rms_norm(self, x: Tensor, pending: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total = x + pending
        return total, self.rms_norm(total, weight, eps)  # [T, D] each

    def linear(self, x: Tensor, weight: Matrix, terms: RowTerms | None = None) -> Tensor:
        return with_terms(product(x, weight), x, terms).to(x.dtype)  # [T, O]

    def summed(self, pending: Tensor) -> Tensor:
        return pending

    def rope_and_store_kv(self, qkv: Tensor, k_cache: Tensor, v_cache: Tensor, metadata: ReferenceMetadata) -> Tensor:
        heads = qkv.view(len(qkv), -1, metadata.head_dim)  # [T, H + 2G, K]
        num_rotated = heads.shape[1] - metadata.num_kv_heads
        rotated = rotate(heads[:, :num_rotated], metadata.cos, metadata.sin)  # [T, H + G, K]
        q, k = rotated[:, : -metadata.num_kv_heads], rotated[:, -metadata.num_kv_heads :]
        for cache, rows in ((k_cache, k), (v_cache, heads[:, num_rotated:])):
            cache.flatten(0, 1).index_copy_(0, metadata.slot_mapping, as_cached(rows, cache.dtype))
        return q  # [T, H, K]

    def attention(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, metadata: ReferenceMetadata, out_dtype: torch.dtype
    ) -> Tensor:
        k_slots, v_slots = k_cache.flatten(0, 1), v_cache.flatten(0, 1)
        return attend(q, k_slots, v_slots, metadata.attention, out_dtype)  # [T, H * K]

    def ffn(self, x: Tensor, weights: ReferenceFfn, group: Group = ALONE, terms: RowTerms | None = None) -> Tensor:
        w1, w3 = product(x, weights.w13).chunk(2, dim=-1)  # [T, F] each
        if terms is not None:
            w1, w3 = terms.term(0).added_to(w1, x), terms.term(1).added_to(w3, x)
        hidden = group.gather(F.silu(w1) * w3, num_inputs(weights.w2), PANEL)  # [T, F]
        return with_terms(product(hidden, weights.w2), hidden, terms and terms.term(2)).to(x.dtype)  # [T, D]

    def moe(
        self,
        x: Tensor,
        weights: ReferenceMoe,
        request: RoutingRequest,
        group: Group = ALONE,
        terms: RowTerms | None = None,
    ) -> Tensor:
        num_experts = len(weights.experts)
        expert_ids, share = route(self.gate_logits(x, weights), request)  # [T, Kmax] each
        experts = expert_ids.flatten()
        counts = experts.bincount(minlength=num_experts + 1).tolist()[:num_experts]
        order = experts.argsort(stable=True)[: sum(counts)]  # [P] pairs by expert, within one by row
        parts = (order // expert_ids.shape[1]).split_with_sizes(counts)  # E of [rows of expert]
        outputs = [
            self.ffn(x[rows], expert, group, terms and terms.of_expert(index).of_rows(rows))
            for index, (rows, expert) in enumerate(zip(parts, weights.experts, strict=True))
            if len(rows)
        ]
        width = num_outputs(weights.experts[0].w2)
        by_pair = torch.zeros(len(experts), width, dtype=torch.float32, device=x.device)  # [T * Kmax, D]
        if outputs:  # not if all rows have no experts, as the padding of a captured step
            by_pair[order] = torch.cat(outputs).float()
        return combine(by_pair.view(*expert_ids.shape, -1), share).to(x.dtype)  # [T, D]

    def add_norm_moe(
        self,
        x: Tensor,
        pending: Tensor,
        norm: Tensor,
        eps: float,
        weights: ReferenceMoe,
        request: RoutingRequest,
        group: Group = ALONE,
        terms: RowTerms | None = None,
    ) -> tuple[Tensor, Tensor]:
        total, normed = self.add_rms_norm(x, pending, norm, eps)
        return total, self.moe(normed, weights, request, group, terms)  # [T, D] each

    def gate_logits(self, x: Tensor, weights: ReferenceMoe) -> Tensor:
        return F.linear(x.float(), weights.gate)  # [T, E]

    def logits(self, x: Tensor, rows: Tensor, head: Matrix) -> Tensor:
        return product(x[rows], head).float()  # [N, V]

    def sample(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        return sample(logits, rows)


def num_outputs(weight: Matrix) -> int:
    """Return O of a matrix [O, D]."""
    return len(weight if isinstance(weight, Tensor) else weight.scales)


def num_inputs(weight: Matrix) -> int:
    """Return D of a matrix [O, D]."""
    return weight.shape[1] if isinstance(weight, Tensor) else weight.num_inputs


def product(x: Tensor, weight: Matrix) -> Tensor:
    """Multiply [T, D] -> [T, O], in the weight's dtype; in float32 for quantized weights."""
    return F.linear(x.to(weight.dtype), weight) if isinstance(weight, Tensor) else multiply(x, weight)


def rotary_angles(
    positions: Tensor, head_dim: int, theta: float, divisors: Sequence[float] = (), factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return cos and sin of position / theta^(2i/K) / divisor i for pair i of K/2, each times `factor`: [T, 1, K]
    float32 each, with equal halves. No `divisors`: all are 1.

    Pair i consists of the numbers i and i + K/2 of a head, the order of Hugging Face.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    frequencies = 1.0 / (theta**exponents)  # [K/2]
    if divisors:
        frequencies /= torch.tensor(divisors, dtype=torch.float32, device=positions.device)
    angles = torch.outer(positions.float(), frequencies)  # [T, K/2]
    doubled = torch.cat((angles, angles), dim=-1).unsqueeze(1)  # [T, 1, K]
    return doubled.cos() * factor, doubled.sin() * factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (a, b) of a head to (a cos - b sin, b cos + a sin), in float32. [T, heads, K] -> same."""
    first, second = x.float().chunk(2, dim=-1)
    orthogonal = torch.cat((-second, first), dim=-1)
    return (x * cos + orthogonal * sin).to(x.dtype)


def route(gate_logits: Tensor, request: RoutingRequest) -> tuple[Tensor, Tensor]:
    """Choose each row's experts from its gate logits [T, E] float32. Writes request.expert_ids.

    Returns expert ids in ascending order and their shares (softmax over the chosen logits), [T, Kmax] each; from the
    row's k on, the id is E and the share 0. The sort is stable, so ties go to the lower id, which torch.topk does not
    guarantee. Example, k = 2: logits [1, 3, 0, 3] choose experts 1 and 3 with share 0.5 each.
    """
    num_experts, max_k = gate_logits.shape[1], request.expert_ids.shape[1]
    if request.allowed is not None:
        gate_logits = gate_logits.masked_fill(~request.allowed, float("-inf"))
    ordered = gate_logits.sort(dim=-1, descending=True, stable=True).indices[:, :max_k]
    beyond = torch.arange(max_k, device=ordered.device) >= request.experts_per_token[:, None]  # [T, Kmax]
    request.expert_ids.copy_(ordered.masked_fill(beyond, -1))
    expert_ids = ordered.masked_fill(beyond, num_experts).sort(dim=-1).values
    kept_logits = gate_logits.gather(-1, expert_ids.clamp(max=num_experts - 1))
    return expert_ids, kept_logits.masked_fill(beyond, float("-inf")).softmax(-1)


def combine(outputs: Tensor, share: Tensor) -> Tensor:
    """Sum outputs [T, Kmax, D] weighted by share [T, Kmax] -> [T, D], always in the order of the second dim."""
    total = outputs[:, 0] * share[:, 0, None]
    for i in range(1, outputs.shape[1]):
        total += outputs[:, i] * share[:, i, None]
    return total
