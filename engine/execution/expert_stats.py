"""Which experts took which tokens: all positions that this engine computed, those computed again included.

A step only hands its tensors over. They are counted a few times a second, many steps at once, on the model's device.
Letters: L layers, E experts, V vocabulary, R rows, K experts of a row.
"""

from collections import defaultdict, deque
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.types import ExpertReport, LayerExperts
from model.config import ModelConfig

FOLD_S = 0.25  # between two countings, while steps run
MAX_UNCOUNTED_ROWS = 1 << 14
WINDOW_S = 60.0  # how far back a report over a window can reach
MAX_WINDOW_BYTES = 64 << 20  # beyond it the window gets shorter
NUM_TOP_TOKENS = 10


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows with the same room for choices, computed at about the same time."""

    at_s: float
    token_ids: Tensor  # [R] int32
    chosen: Tensor  # [L, R, K] int16, -1 behind a row's own k

    @property
    def num_bytes(self) -> int:
        return self.token_ids.nbytes + self.chosen.nbytes


class _Tables:
    """Counts. The place behind the last expert takes the -1 of rows with fewer experts than there is room for."""

    def __init__(self, num_layers: int, num_experts: int, vocab_size: int, device: torch.device) -> None:
        places = num_experts + 1
        self._vocab_size = vocab_size
        self._counts = torch.zeros(num_layers, places, dtype=torch.int64, device=device)
        self._of_tokens = torch.zeros(num_layers, places, vocab_size, dtype=torch.int64, device=device)
        self._pairs = torch.zeros(num_layers, places, places, dtype=torch.int64, device=device)
        self._first_places = torch.arange(num_layers, device=device)[:, None, None] * places  # [L, 1, 1]
        self._one = torch.ones(1, dtype=torch.int64, device=device)

    def add(self, rows: _Rows) -> None:
        places = self._pairs.shape[1]
        experts = rows.chosen.long().remainder(places)  # [L, R, K], -1 -> E
        flat = experts + self._first_places  # over L * (E + 1)
        self._put(self._counts, flat)
        self._put(self._of_tokens, flat * self._vocab_size + rows.token_ids.long()[:, None])
        for i in range(experts.shape[2]):
            for j in range(i + 1, experts.shape[2]):
                self._put(self._pairs, flat[:, :, i] * places + experts[:, :, j])

    def _put(self, table: Tensor, indices: Tensor) -> None:
        table.view(-1).index_put_((indices.reshape(-1),), self._one, accumulate=True)

    def tokens(self) -> Tensor:
        """[L, E]."""
        return self._counts[:, :-1].clone()

    def layers(self, vocabulary: list[int] | None = None) -> list[LayerExperts]:
        """`vocabulary`: the tokens whose places in it were counted as ids, where it is not the whole one."""
        pairs = (self._pairs + self._pairs.mT)[:, :-1, :-1].tolist()
        counts, ids = self._top_tokens()
        return [
            LayerExperts(
                tokens=tokens,
                pairs=of_layer,
                top_tokens=[
                    [
                        (vocabulary[token] if vocabulary else token, count)
                        for token, count in zip(*expert, strict=True)
                        if count
                    ]
                    for expert in zip(top_ids, top_counts, strict=True)
                ],
            )
            for tokens, of_layer, top_ids, top_counts in zip(
                self.tokens().tolist(), pairs, ids.tolist(), counts.tolist(), strict=True
            )
        ]

    def _top_tokens(self) -> tuple[Tensor, Tensor]:
        """Counts and ids of each expert's most frequent tokens, [L, E, top] each; of equal ones the lower ids first."""
        low_ids_first = torch.arange(self._vocab_size - 1, -1, -1, device=self._pairs.device)
        num_top = min(NUM_TOP_TOKENS, self._vocab_size)
        best = torch.stack(  # layer by layer: a second table as large as this one may find no room on a card
            [(counts * self._vocab_size + low_ids_first).topk(num_top).values for counts in self._of_tokens[:, :-1]]
        )
        return best // self._vocab_size, self._vocab_size - 1 - best % self._vocab_size


class ExpertStats:
    """Counts since the start or the last reset(), and the rows of the last minute, to be counted when asked for.

    `now_s` is a monotonic time, `wall_s` a unix time.
    """

    def __init__(self, model: ModelConfig, device: torch.device) -> None:
        self._shape = model.num_layers, model.num_experts, model.vocab_size, device
        self._uncounted: list[tuple[Tensor, Tensor]] = []
        self._num_uncounted = 0
        self._due_s = 0.0
        self._told: Tensor
        self._has_untold: bool
        self._forget(0.0)

    def record(self, token_ids: Tensor, chosen: Tensor) -> None:
        """A step's rows, [T] and [L, T, Kmax]; neither may be written to again."""
        self._uncounted.append((token_ids, chosen))
        self._num_uncounted += len(token_ids)

    @property
    def has_unreported(self) -> bool:
        """Whether pop_new_counts() has anything to tell."""
        return bool(self._uncounted) or self._has_untold

    def is_due(self, now_s: float) -> bool:
        """Whether a running engine should pop_new_counts() now."""
        return self.has_unreported and (now_s >= self._due_s or self._num_uncounted >= MAX_UNCOUNTED_ROWS)

    def pop_new_counts(self, now_s: float) -> list[list[int]]:
        """[L][E]: what the experts took since the last call."""
        self._count(now_s)
        tokens = self._tables.tokens()
        new: list[list[int]] = (tokens - self._told).tolist()
        self._told, self._has_untold, self._due_s = tokens, False, now_s + FOLD_S
        return new

    def reset(self, now_s: float, wall_s: float) -> None:
        """Counts from zero again. What pop_new_counts() was still to tell is not lost."""
        self._count(now_s)
        untold = self._tables.tokens() - self._told
        self._forget(wall_s)
        self._told, self._has_untold = -untold, bool(untold.any())

    def report(self, window_s: float | None, now_s: float, wall_s: float) -> ExpertReport:
        """Everything up to now: since the start or the last reset, or of the last `window_s` (at most WINDOW_S)."""
        self._count(now_s)
        if window_s is None:
            return ExpertReport(self._since_s, self._tables.layers())
        recent = [rows for rows in self._window if rows.at_s >= now_s - window_s]
        return ExpertReport(max(self._since_s, wall_s - window_s), self._layers_of(recent))

    def _layers_of(self, window: list[_Rows]) -> list[LayerExperts]:
        """Counted over the tokens that occur: far fewer than the vocabulary has."""
        num_layers, num_experts, _, device = self._shape
        token_ids = torch.cat([torch.zeros(1, dtype=torch.int32, device=device), *(rows.token_ids for rows in window)])
        vocabulary, places = torch.unique(token_ids, return_inverse=True)
        tables = _Tables(num_layers, num_experts, len(vocabulary), device)
        of_rows = places[1:].split([len(rows.token_ids) for rows in window])
        for rows, ids in zip(window, of_rows, strict=True):
            tables.add(replace(rows, token_ids=ids))
        return tables.layers(vocabulary.tolist())

    def _forget(self, wall_s: float) -> None:
        self._since_s = wall_s
        self._tables = _Tables(*self._shape)
        self._window: deque[_Rows] = deque()
        self._told = self._tables.tokens()
        self._has_untold = False

    def _count(self, now_s: float) -> None:
        """Steps with the same room for choices are counted together."""
        by_room: defaultdict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for token_ids, chosen in self._uncounted:
            by_room[chosen.shape[2]].append((token_ids, chosen))
        for steps in by_room.values():
            token_ids = torch.cat([token_ids for token_ids, _ in steps]).to(torch.int32)
            rows = _Rows(now_s, token_ids, torch.cat([chosen for _, chosen in steps], dim=1).to(torch.int16))
            self._tables.add(rows)
            self._window.append(rows)
            self._has_untold = True
        self._uncounted, self._num_uncounted = [], 0
        self._trim(now_s)

    def _trim(self, now_s: float) -> None:
        num_bytes = sum(rows.num_bytes for rows in self._window)
        while self._window and (self._window[0].at_s < now_s - WINDOW_S or num_bytes > MAX_WINDOW_BYTES):
            num_bytes -= self._window.popleft().num_bytes
