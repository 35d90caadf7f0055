"""LoRA adapters (Hu et al. 2021) as low-rank terms of matrices.

A term of a matrix W [O, K] changes its product: y = W x + scale * B (A x), with A [r, K] and B [O, r]. Terms are
float32 or bfloat16, as the adapter's file has them; sums are float32, whatever the format of W.
Letters: T rows, L layers, E experts, r rank.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.cut import PANEL

NUM_ATTENTION_TERMS = 4  # of a layer: q, k, v and output; three of each expert follow: w1, w3 and w2
NUM_EXPERT_TERMS = 3


@dataclass(frozen=True)
class LowRank:
    """The term of one matrix, laid out as the kernels read it; zeros past the ends of r, K and O.

    In float32 a holds four neighbouring inputs of every rank one below the other, then the next four. In bfloat16 it
    holds them in pairs, input k beside k + 4, and b holds pairs of neighbouring ranks: a register of pairs becomes two
    of float32 by a shift and a mask. P numbers are a pair: 1 in float32, 2 in bfloat16.
    """

    a: Tensor  # [ceil(K / 4P), r rounded up to a multiple of 4, 4, P]
    b: Tensor  # [ceil(O / PANEL), ceil(r / P), PANEL, P]
    rank: int
    num_inputs: int  # K
    num_outputs: int  # O
    scale: float
    first_output: int = 0  # among the outputs of a product of several matrices, one below the other

    @classmethod
    def packed(cls, a: Tensor, b: Tensor, scale: float, first_output: int = 0) -> "LowRank":
        """Return the term of A [r, K] and B [O, r], which have one dtype."""
        (rank, num_inputs), pair = a.shape, 2 if a.dtype == torch.bfloat16 else 1
        of_inputs = F.pad(a, (0, -num_inputs % (4 * pair), 0, -rank % 4))
        of_inputs = of_inputs.view(len(of_inputs), -1, pair, 4).permute(1, 0, 3, 2).contiguous()
        panels = F.pad(b, (0, -rank % pair, 0, -len(b) % PANEL))
        panels = panels.view(-1, PANEL, -(-rank // pair), pair).transpose(1, 2).contiguous()
        return cls(of_inputs, panels, rank, num_inputs, len(b), scale, first_output)

    @property
    def matrices(self) -> tuple[Tensor, Tensor]:
        """A [r, K] and B [O, r]."""
        a = self.a.permute(1, 0, 3, 2).flatten(1)[: self.rank, : self.num_inputs]
        b = self.b.transpose(1, 2).flatten(2).flatten(0, 1)[: self.num_outputs, : self.rank]
        return a, b

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + self.b.nbytes

    def product(self, x: Tensor) -> Tensor:
        """Return scale * B (A x): [T, K] -> [T, O] float32."""
        a, b = self.matrices
        return F.linear(self.scale * F.linear(x.float(), a.float()), b.float())


@dataclass(frozen=True, eq=False)
class Adapter:
    """The terms of all layers. Two adapters with equal digests have equal terms."""

    digest: str  # SHA-256 of its files, in hex
    layers: tuple[tuple[LowRank | None, ...], ...]  # [L][NUM_ATTENTION_TERMS + NUM_EXPERT_TERMS * max(E, 1)]

    @property
    def num_bytes(self) -> int:
        return sum(term.num_bytes for layer in self.layers for term in layer if term is not None)
