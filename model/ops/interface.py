"""The seam between the network and the machine: the coarse functions that mixtral.py is written against.

A backend is an object with these methods. What `pack_*` returns is opaque: only the backend that packed a weight looks
inside. reference.py, plain torch on any device, defines what every function means.

Shape letters: T rows of a batch, S sequences, N rows with logits, D model dim, H heads, G KV heads, K head dim,
F hidden dim of an FFN or expert, E experts, V vocabulary, O outputs of a linear layer.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from model.config import ModelConfig
from model.forward_batch import ForwardBatch
from model.sampling_batch import SampledRows, SamplingRows

PackedWeights: TypeAlias = Any  # a weight in a backend's own form
BatchMetadata: TypeAlias = Any  # what a backend computes once per batch and reads in every layer


@dataclass(frozen=True)
class FfnWeights:
    """One SwiGLU FFN, w2(silu(w1 x) * (w3 x)): a dense layer's, or one expert's."""

    w1: Tensor  # [F, D]
    w3: Tensor  # [F, D]
    w2: Tensor  # [D, F]


@dataclass(frozen=True)
class RoutingRequest:
    """What each row asks of one layer's gate, and where the answer goes. A row has at least k experts switched on.

    Example: E = 4, k = [2, 1], gate logits [[0, 3, 1, 3], [2, 0, 5, 0]], expert 2 switched off for row 1. Then
    expert_ids = [[1, 3], [0, -1]].
    """

    experts_per_token: Tensor  # [T] int32, k of each row, 1 .. Kmax (0: a padding row of model/mixtral_cuda_graphs.py)
    allowed: Tensor | None  # [T, E] bool, True: switched on; None: all are
    expert_ids: (
        Tensor  # [T, Kmax] int32, WRITTEN: ids in descending order of their gate logits, -1 behind the row's own k
    )


class Ops(Protocol):
    """Weights come in the compute dtype and on the device; activations are [T, ...] in the same dtype."""

    def pack_linear(self, weight: Tensor) -> PackedWeights:
        """weight [O, D]. May keep the tensor itself."""

    def pack_ffn(self, weights: FfnWeights) -> PackedWeights:
        """A dense FFN."""

    def pack_moe(self, gate: Tensor, experts: Iterable[FfnWeights]) -> PackedWeights:
        """gate [E, D]; the experts in order of their ids. Each is drawn from the iterable when its turn comes and
        dropped once packed, so that no layer is ever held twice."""

    def prepare_batch(self, config: ModelConfig, batch: ForwardBatch, block_size: int) -> BatchMetadata:
        """What depends on the batch alone: rotary angles, which slots each row attends to."""

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        """[T], [V, D] -> [T, D]."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019, eq. 4), in float32. [T, D] -> [T, D]."""

    def linear(self, x: Tensor, weight: PackedWeights) -> Tensor:
        """[T, D] -> [T, O]."""

    def rope_and_store_kv(self, qkv: Tensor, k_cache: Tensor, v_cache: Tensor, plan: BatchMetadata) -> Tensor:
        """Turns q and k by their positions (Su et al. 2021, eq. 34), writes k and v to the batch's slots, returns q.

        qkv [T, (H + 2G) * K], caches [num_blocks, block_size, G, K] (written; int8 ones have rows of K + 4, see
        model/kv_format.py) -> [T, H, K].
        """

    def attention(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: BatchMetadata) -> Tensor:
        """Causal grouped-query attention over the block tables: position i sees i - window + 1 .. i, and reads no slot
        outside of that. [T, H, K] -> [T, H * K]."""

    def ffn(self, x: Tensor, weights: PackedWeights) -> Tensor:
        """[T, D] -> [T, D]."""

    def moe(self, x: Tensor, weights: PackedWeights, choice: RoutingRequest) -> Tensor:
        """Sum over a row's k chosen experts of weight times output; weights are the softmax over the k largest gate
        logits of experts that are switched on (Jiang et al. 2024, section 2.1). Ties go to the lower expert id.
        Writes choice.expert_ids. [T, D] -> [T, D]."""

    def logits(self, x: Tensor, rows: Tensor, norm: Tensor, eps: float, head: PackedWeights) -> Tensor:
        """Final norm and head of the chosen rows: [T, D], [N] -> [N, V] float32."""

    def sample(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        """A token for every row of logits [N, V] float32, and its log probabilities; reference_sampling.py says how.
        Each row's answer is its own. Writes rows.history."""


def packed_bytes(packed: object) -> int:
    """Return the bytes of all tensors in packed weights: a tensor, a sequence, or a dataclass of them."""
    if isinstance(packed, Tensor):
        return packed.nbytes
    if isinstance(packed, list | tuple):
        return sum(map(packed_bytes, packed))
    fields = getattr(packed, "__dataclass_fields__", {})
    return sum(packed_bytes(getattr(packed, name)) for name in fields)
