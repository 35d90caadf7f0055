"""The CUDA backend: Triton kernels for sm_80 and newer; torch's own products for linear layers with plain weights.

Nothing here waits for the device, so that a decode step can be captured in a CUDA graph. `deterministic` uses one
tiling for every batch, so that a row's result depends on that row alone. Shape letters as in model/ops/interface.py.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.forward_batch import ForwardBatch
from model.group import ALONE, Group
from model.kv_format import KvDtype, KvLayout
from model.lora.rows import RowTerms
from model.ops.interface import FfnWeights, RoutingRequest
from model.ops.triton.attention.attention import AttentionPlan, attention, plan_attention
from model.ops.triton.gemm_tiles import Tiling, choose_splits, choose_tiling
from model.ops.triton.launch import HOPPER, Launch, launch_on_device, options_of
from model.ops.triton.linear import linear, num_tiles
from model.ops.triton.moe import TritonExperts, experts
from model.ops.triton.packed_weights import TritonMatrix, WeightFormat, empty_matrix, pack, store
from model.ops.triton.pending_sum import Parts, Pending, summed
from model.ops.triton.rms_norm import add_norm_gate, add_rms_norm, rms_norm
from model.ops.triton.rotary import rope_and_store_kv, rotary_angles
from model.ops.triton.sampling import sample
from model.ops.triton.topk_routing import gather_tiles, one_expert, route
from model.ops.weights import Weight, as_tensor, stacked
from model.sampling_batch import SampledRows, SamplingRows

NO_TERMS = "adapters are not computed on a GPU"


@dataclass(frozen=True)
class TritonMoe:
    """Gate and experts. The gate stays in float32, so that its rounding does not decide which experts a token gets."""

    gate: Tensor  # [E, D] float32
    experts: TritonExperts


@dataclass(frozen=True)
class TritonMetadata:
    """Rotary angles, slots and attention tiles of one batch."""

    angles: tuple[Tensor, Tensor]  # cos and sin, [T, K/2] float32 each
    attention: AttentionPlan


class TritonOps:
    """Implementation of model.ops.interface.Ops for CUDA devices."""

    block_formats: frozenset[str] = frozenset()
    packs_streams = False

    def __init__(
        self,
        dtype: torch.dtype,
        weight_format: WeightFormat = "plain",
        deterministic: bool = False,
        launch: Launch = launch_on_device,
        arch: int = HOPPER,
    ) -> None:
        """`arch`: compute capability times 10, which decides about tile sizes."""
        self.dtype = dtype
        self.weight_format = weight_format
        self.deterministic = deterministic
        self._launch = launch
        self._arch = arch

    @property
    def launcher_options(self) -> Mapping[str, Any]:
        """Options that the launcher adds to each launch."""
        return options_of(self._launch)

    def launched_by(self, launch: Launch) -> "TritonOps":
        """Return the same backend with another launcher."""
        return TritonOps(self.dtype, self.weight_format, self.deterministic, launch, self._arch)

    def pack_linear(self, *weights: Weight) -> TritonMatrix:
        return pack(stacked(weights), self.weight_format)

    def pack_ffn(self, weights: FfnWeights) -> TritonExperts:
        return self._pack_experts(1, iter([weights]))

    def pack_moe(self, gate: Tensor, experts: Iterable[FfnWeights]) -> TritonMoe:
        return TritonMoe(gate.float().contiguous(), self._pack_experts(len(gate), experts))

    def kv_layout(self, dtype: KvDtype, block_size: int) -> KvLayout:
        del block_size
        return "split" if dtype == "int8" else "rows"

    def prepare_batch(self, config: ModelConfig, batch: ForwardBatch, block_size: int) -> TritonMetadata:
        scaling = config.rope_divisors, config.rope_factor
        angles = rotary_angles(batch.positions, config.head_dim, config.rope_theta, *scaling)
        return TritonMetadata(
            angles, plan_attention(config, batch, block_size, self.dtype == torch.float32, self.deterministic)
        )

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        return F.embedding(token_ids, table)  # [T, D]

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return rms_norm(self._launch, x, weight, eps)  # [T, D]

    def add_rms_norm(self, x: Tensor, pending: Pending, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return add_rms_norm(self._launch, x, pending, weight, eps)  # [T, D] each

    def linear(self, x: Tensor, weight: TritonMatrix, terms: RowTerms | None = None) -> Pending:
        assert terms is None, NO_TERMS
        if weight.format == "plain" and not self.deterministic:
            return F.linear(x, weight.values)
        tiling = self._tiling(len(x), weight)
        num_splits = choose_splits(num_tiles(x, weight, tiling), self.deterministic or weight.format == "plain")
        return Parts(linear(self._launch, x, weight, tiling, num_splits), None, None)  # [T, O]

    def summed(self, pending: Pending) -> Tensor:
        return summed(self._launch, pending, self.dtype)  # [T, O]

    def rope_and_store_kv(self, qkv: Pending, k_cache: Tensor, v_cache: Tensor, metadata: TritonMetadata) -> Tensor:
        slots = metadata.attention.batch.slot_mapping
        return rope_and_store_kv(self._launch, qkv, metadata.angles, slots, k_cache, v_cache, self.dtype)  # [T, H, K]

    def attention(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, metadata: TritonMetadata, out_dtype: torch.dtype
    ) -> Tensor:
        assert out_dtype == q.dtype, "no weights stay in blocks on a GPU"
        return attention(self._launch, q, k_cache, v_cache, metadata.attention)  # [T, H * K]

    def ffn(self, x: Tensor, weights: TritonExperts, group: Group = ALONE, terms: RowTerms | None = None) -> Pending:
        assert terms is None, NO_TERMS
        tiling = self._tiling(len(x), weights.w2)
        return experts(
            self._launch, x, weights, one_expert(len(x), tiling.rows, x.device), tiling, self.deterministic, group
        )

    def moe(
        self,
        x: Tensor,
        weights: TritonMoe,
        request: RoutingRequest,
        group: Group = ALONE,
        terms: RowTerms | None = None,
    ) -> Pending:
        assert terms is None, NO_TERMS
        tiling = self._expert_tiling(weights, request)
        routing = route(self._launch, x, weights.gate, request, tiling.rows)
        return experts(self._launch, x, weights.experts, routing, tiling, self.deterministic, group)  # [T, D]

    def add_norm_moe(
        self,
        x: Tensor,
        pending: Pending,
        norm: Tensor,
        eps: float,
        weights: TritonMoe,
        request: RoutingRequest,
        group: Group = ALONE,
        terms: RowTerms | None = None,
    ) -> tuple[Tensor, Pending]:
        assert terms is None, NO_TERMS
        tiling = self._expert_tiling(weights, request)
        total, normed, shares = add_norm_gate(self._launch, x, pending, norm, eps, weights.gate, request)
        routing = gather_tiles(self._launch, request.expert_ids, shares, len(weights.gate), tiling.rows)
        return total, experts(self._launch, normed, weights.experts, routing, tiling, self.deterministic, group)

    def gate_logits(self, x: Tensor, weights: TritonMoe) -> Tensor:
        return F.linear(x.float(), weights.gate)  # [T, E]

    def logits(self, x: Tensor, rows: Tensor, head: TritonMatrix) -> Tensor:
        selected = x.index_select(0, rows)  # [N, D]
        return linear(self._launch, selected, head, self._tiling(len(rows), head))[0]  # [N, V]

    def sample(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        return sample(self._launch, logits, rows)

    def _expert_tiling(self, weights: TritonMoe, request: RoutingRequest) -> Tiling:
        """Choose tile sizes for twice the mean rows of an expert, because loads are uneven."""
        rows_per_expert = request.expert_ids.numel() // len(weights.gate)
        return self._tiling(2 * rows_per_expert, weights.experts.w2)

    def _tiling(self, num_rows: int, weight: TritonMatrix) -> Tiling:
        return choose_tiling(num_rows, self.dtype, weight.format, self.deterministic, self._arch)

    def _pack_experts(self, num_experts: int, weights: Iterable[FfnWeights]) -> TritonExperts:
        """Pack `num_experts` FFNs of equal shape. Each is quantized on its device and freed before the next is read."""
        packed: TritonExperts | None = None
        for expert, ffn in enumerate(weights):
            w1, w3, w2 = (as_tensor(weight) for weight in (ffn.w1, ffn.w3, ffn.w2))
            hidden_dim, dim = w1.shape  # of a rank: its outputs, and all inputs
            if packed is None:
                w13 = empty_matrix((num_experts, 2 * hidden_dim, dim), w1, self.weight_format)
                packed = TritonExperts(w13, empty_matrix((num_experts, *w2.shape), w2, self.weight_format))
            store(w1, packed.w13, slice(0, 2 * hidden_dim, 2), expert)
            store(w3, packed.w13, slice(1, 2 * hidden_dim, 2), expert)
            store(w2, packed.w2, slice(0, len(w2)), expert)
            del ffn, w1, w3, w2
        assert packed is not None
        return packed
