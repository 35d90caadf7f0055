"""The interface between network and hardware: the operations that model/mixtral.py calls.

A backend is an object with the methods of `Ops`. What its `pack_*` methods return is opaque: only the backend that
packed a weight reads it. model/ops/reference/ops.py, plain torch on any device, defines the result of every method.

Shape letters: T rows of a batch, S sequences, N rows with logits, D model dim, H heads, G KV heads, K head dim,
F hidden dim of an FFN or expert, E experts, V vocabulary, O outputs of a linear layer.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from model.config import ModelConfig
from model.forward_batch import ForwardBatch
from model.group import ALONE, Group
from model.kv_format import KvDtype, KvLayout
from model.lora.rows import RowTerms
from model.ops.weights import Weight
from model.sampling_batch import SampledRows, SamplingRows

PackedWeights: TypeAlias = Any  # a weight in a backend's own layout
BatchMetadata: TypeAlias = Any  # what a backend computes once per batch and reads in every layer
Pending: TypeAlias = Any  # [T, O], or parts of it that the op which takes it adds up: only the backend reads it


@dataclass(frozen=True)
class FfnWeights:
    """One SwiGLU FFN, w2(silu(w1 x) * (w3 x)): the FFN of a dense layer, or one expert."""

    w1: Weight  # [F, D]
    w3: Weight  # [F, D]
    w2: Weight  # [D, F]


@dataclass(frozen=True)
class RoutingRequest:
    """Input and output of one layer's gate, per row. At least k experts are switched on for each row.

    Example: E = 4, k = [2, 1], gate logits [[0, 3, 1, 3], [2, 0, 5, 0]], expert 2 switched off for row 1. Then
    expert_ids = [[1, 3], [0, -1]].
    """

    experts_per_token: Tensor  # [T] int32, k of each row, 1 .. Kmax (0: a padding row of model/mixtral_cuda_graphs.py)
    allowed: Tensor | None  # [T, E] bool, True: switched on; None: all are switched on
    expert_ids: Tensor  # [T, Kmax] int32, WRITTEN: by descending gate logit, -1 from the row's k on


class Ops(Protocol):
    """Operations of the network. Activations are [T, ...] in the compute dtype.

    Weights arrive on the device, in the compute dtype or in blocks. In the experts of a layer each of w1, w3 and w2 has
    one format. Low-rank terms of adapters are added to a product before anything else happens to it.
    """

    block_formats: frozenset[str]  # formats of the BlockMatrix and BlockStream objects that this backend packs
    packs_streams: bool  # True if it packs TensorStream objects

    def pack_linear(self, *weights: Weight) -> PackedWeights:
        """Pack weights [O, D], one below the other. The result may be the tensor itself."""

    def pack_ffn(self, weights: FfnWeights) -> PackedWeights:
        """Pack a dense FFN."""

    def pack_moe(self, gate: Tensor, experts: Iterable[FfnWeights]) -> PackedWeights:
        """Pack gate [E, D] and its experts, which come in order of their ids.

        Takes one expert from the iterable at a time and drops it once packed, so that no layer is in memory twice.
        """

    def kv_layout(self, dtype: KvDtype, block_size: int) -> KvLayout:
        """Return how this backend lays out the blocks of a KV cache."""

    def prepare_batch(self, config: ModelConfig, batch: ForwardBatch, block_size: int) -> BatchMetadata:
        """Compute what all layers share: rotary angles, and which slots each row attends to."""

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        """Look up embeddings: [T], [V, D] -> [T, D]."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019, eq. 4), in float32. [T, D] -> [T, D]."""

    def add_rms_norm(self, x: Tensor, pending: Pending, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return x + pending, and its rms_norm: [T, D] each. The sum is rounded once, behind `pending` itself."""

    def linear(self, x: Tensor, weight: PackedWeights, terms: RowTerms | None = None) -> Pending:
        """Multiply by a packed matrix, and add low-rank terms: [T, D] -> [T, O]."""

    def summed(self, pending: Pending) -> Tensor:
        """Return a pending output as one tensor, rounded as by the op that would add it: what ranks gather."""

    def rope_and_store_kv(self, qkv: Pending, k_cache: Tensor, v_cache: Tensor, metadata: BatchMetadata) -> Tensor:
        """Rotate q and k by their positions (Su et al. 2021, eq. 34), write k and v to the batch's slots, return q.

        qkv [T, (H + 2G) * K], caches [num_blocks, block_size, G, K] (written; int8 ones have rows of K + 4, see
        model/kv_format.py; blocks in kv_layout()) -> [T, H, K].
        """

    def attention(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, metadata: BatchMetadata, out_dtype: torch.dtype
    ) -> Tensor:
        """Compute causal grouped-query attention over the block tables: [T, H, K] -> [T, H * K] in `out_dtype`.

        Position i sees positions i - window + 1 .. i; no slot outside of that range is read.
        """

    def ffn(self, x: Tensor, weights: PackedWeights, group: Group = ALONE, terms: RowTerms | None = None) -> Pending:
        """Compute a dense FFN: [T, D] -> [T, D].

        In a group w1 and w3 have some of the F outputs, and w2 some of D: those of model/cut.py, by panels. The hidden
        rows are gathered, and the result has the rank's columns of D.
        """

    def moe(
        self,
        x: Tensor,
        weights: PackedWeights,
        request: RoutingRequest,
        group: Group = ALONE,
        terms: RowTerms | None = None,
    ) -> Pending:
        """Sum weight times output over each row's k experts: [T, D] -> [T, D]. Writes request.expert_ids.

        In a group the experts are cut as in ffn, and the gate is whole.

        The k experts are those with the largest gate logits among the experts that are switched on, ties to the lower
        id; the weights are the softmax over these k logits (Jiang et al. 2024, section 2.1).
        """

    def add_norm_moe(
        self,
        x: Tensor,
        pending: Pending,
        norm: Tensor,
        eps: float,
        weights: PackedWeights,
        request: RoutingRequest,
        group: Group = ALONE,
        terms: RowTerms | None = None,
    ) -> tuple[Tensor, Pending]:
        """Return x + pending [T, D], and the moe of its rms_norm, [T, D]: a backend may do norm and gate at once."""

    def gate_logits(self, x: Tensor, weights: PackedWeights) -> Tensor:
        """Multiply by the gate of packed experts, in float32: [T, D] -> [T, E]. For reports: `moe` does it by itself.

        Sums may be in another order than those that choose the experts.
        """

    def logits(self, x: Tensor, rows: Tensor, head: PackedWeights) -> Tensor:
        """Apply the head to the given rows of x, which are normalized: [T, D], [N] -> [N, V] float32."""

    def sample(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        """Sample a token for every row of logits [N, V] float32, and compute log probabilities. Writes rows.history.

        A row's result does not depend on other rows. model/ops/reference/sampling.py defines it. A later call with the
        same two objects, whose numbers have changed, may overwrite the result.
        """


def packed_bytes(packed: object) -> int:
    """Return the bytes of all tensors in packed weights: a tensor, a sequence, or a dataclass of them."""
    if isinstance(packed, Tensor):
        return packed.nbytes
    if isinstance(packed, list | tuple):
        return sum(map(packed_bytes, packed))
    fields = getattr(packed, "__dataclass_fields__", {})
    return sum(packed_bytes(getattr(packed, name)) for name in fields)
