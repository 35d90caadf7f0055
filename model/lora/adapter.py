"""LoRA adapters (Hu et al. 2021) as low-rank terms of matrices.

A term of a matrix W [O, K] changes its product: y = W x + scale * B (A x), with A [r, K] and B [O, r]. Terms are
float32 or bfloat16, as the adapter's file has them; sums are float32, whatever the format of W.
Letters: T rows, L layers, E experts, r rank.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from model.cut import PANEL

NUM_ATTENTION_TERMS = 4  # of a layer: q, k, v and output; three of each expert follow: w1, w3 and w2
NUM_EXPERT_TERMS = 3


@dataclass(frozen=True)
class LowRank:
    """The term of one matrix."""

    a: Tensor  # [r, K]
    b: Tensor  # [ceil(O / PANEL), r, PANEL]: B by panels of outputs, zeros past the last output
    num_outputs: int  # O
    scale: float
    first_output: int = 0  # among the outputs of a product of several matrices, one below the other

    @classmethod
    def packed(cls, a: Tensor, b: Tensor, scale: float, first_output: int = 0) -> "LowRank":
        """Return the term of A [r, K] and B [O, r], which have one dtype."""
        padded = F.pad(b, (0, 0, 0, -len(b) % PANEL))
        panels = padded.view(-1, PANEL, b.shape[1]).transpose(1, 2).contiguous()
        return cls(a.contiguous(), panels, len(b), scale, first_output)

    @property
    def rank(self) -> int:
        return len(self.a)

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + self.b.nbytes

    def product(self, x: Tensor) -> Tensor:
        """Return scale * B (A x): [T, K] -> [T, O] float32."""
        b = self.b.transpose(1, 2).flatten(0, 1)[: self.num_outputs]  # [O, r]
        return F.linear(self.scale * F.linear(x.float(), self.a.float()), b.float())


@dataclass(frozen=True, eq=False)
class Adapter:
    """The terms of all layers. Two adapters with equal digests have equal terms."""

    digest: str  # SHA-256 of its files, in hex
    layers: tuple[tuple[LowRank | None, ...], ...]  # [L][NUM_ATTENTION_TERMS + NUM_EXPERT_TERMS * max(E, 1)]

    @property
    def num_bytes(self) -> int:
        return sum(term.num_bytes for layer in self.layers for term in layer if term is not None)
