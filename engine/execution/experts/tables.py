"""Count tables of experts on the model's device: tokens per expert, pairs of experts, tokens of each vocabulary entry.

Letters: L layers, E experts, V vocabulary, R rows, K experts of a row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.types import LayerExperts

NUM_TOP_TOKENS = 10


@dataclass(frozen=True, slots=True)
class RoutedRows:
    """Rows with the same K, counted at the same time."""

    at_s: float
    token_ids: Tensor  # [R] int32
    expert_ids: Tensor  # [L, R, K] int16, padded with -1 after a row's own k

    @property
    def num_bytes(self) -> int:
        return self.token_ids.nbytes + self.expert_ids.nbytes


class ExpertTables:
    """Counts with E + 1 columns: the last one takes the -1 of rows with fewer than K experts."""

    def __init__(self, num_layers: int, num_experts: int, vocab_size: int, device: torch.device) -> None:
        columns = num_experts + 1
        self._vocab_size = vocab_size
        self._counts = torch.zeros(num_layers, columns, dtype=torch.int64, device=device)
        self._token_counts = torch.zeros(num_layers, columns, vocab_size, dtype=torch.int64, device=device)
        self._pairs = torch.zeros(num_layers, columns, columns, dtype=torch.int64, device=device)
        self._first_columns = torch.arange(num_layers, device=device)[:, None, None] * columns  # [L, 1, 1]
        self._one = torch.ones(1, dtype=torch.int64, device=device)

    def add(self, rows: RoutedRows) -> None:
        """Count the rows in all three tables."""
        columns = self._pairs.shape[1]
        experts = rows.expert_ids.long().remainder(columns)  # [L, R, K], -1 -> E
        flat = experts + self._first_columns  # over L * (E + 1)
        self._increment(self._counts, flat)
        self._increment(self._token_counts, flat * self._vocab_size + rows.token_ids.long()[:, None])
        for i in range(experts.shape[2]):
            for j in range(i + 1, experts.shape[2]):
                self._increment(self._pairs, flat[:, :, i] * columns + experts[:, :, j])

    def _increment(self, table: Tensor, indices: Tensor) -> None:
        table.view(-1).index_put_((indices.reshape(-1),), self._one, accumulate=True)

    def tokens(self) -> Tensor:
        """Return the tokens per layer and expert, [L, E]."""
        return self._counts[:, :-1].clone()

    def layers(self, vocabulary: list[int] | None = None) -> list[LayerExperts]:
        """Return the counts of each layer. `vocabulary` maps the counted ids to token ids if they are only a part of
        the model's vocabulary."""
        pairs = (self._pairs + self._pairs.mT)[:, :-1, :-1].tolist()
        counts, ids = self._top_tokens()
        return [
            LayerExperts(
                tokens=tokens,
                pairs=layer_pairs,
                top_tokens=[
                    [
                        (vocabulary[token] if vocabulary else token, count)
                        for token, count in zip(*expert, strict=True)
                        if count
                    ]
                    for expert in zip(top_ids, top_counts, strict=True)
                ],
            )
            for tokens, layer_pairs, top_ids, top_counts in zip(
                self.tokens().tolist(), pairs, ids.tolist(), counts.tolist(), strict=True
            )
        ]

    def _top_tokens(self) -> tuple[Tensor, Tensor]:
        """Return counts and ids of each expert's most frequent tokens, [L, E, top] each; ties to the lower id."""
        low_ids_first = torch.arange(self._vocab_size - 1, -1, -1, device=self._pairs.device)
        num_top = min(NUM_TOP_TOKENS, self._vocab_size)
        best = torch.stack(  # layer by layer: a second table of this size may not fit a GPU
            [(counts * self._vocab_size + low_ids_first).topk(num_top).values for counts in self._token_counts[:, :-1]]
        )
        return best // self._vocab_size, self._vocab_size - 1 - best % self._vocab_size
