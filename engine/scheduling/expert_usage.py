"""Expert ids that one request's positions were routed to: counts for its prompt, the ids themselves for its completion.

Letters: L layers, E experts, k experts per token.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from engine.types import ExpertChoices, ExpertIds, Request


class ExpertUsage:
    """Expert counts and ids of one request. Each position is counted once, however often it is computed."""

    def __init__(self, request: Request, num_experts: int) -> None:
        self._num_experts = num_experts
        self._keeps_routing = request.expert_routing
        self._num_prompt_tokens = len(request.prompt_token_ids)
        self.reports_gates = request.gate_logits
        self.reported_from = 0 if request.prompt_routing else self._num_prompt_tokens  # position of the first ids
        self._num_seen = 0
        self._prompt_counts: list[Counter[int]] = []  # L of them
        self._unreported: list[list[ExpertIds]] = []
        self._unreported_gates: list[bytes] = []

    def add(self, start: int, choices: ExpertChoices, gates: Sequence[bytes] = ()) -> None:
        """Add positions start, start + 1, ...; skip those that were added before.

        `gates`: gate logits of the last of these positions, all those from `reported_from` on.
        """
        end = start + len(choices[0])
        first, split = max(start, self._num_seen), max(start, min(self._num_prompt_tokens, end))
        self._prompt_counts = self._prompt_counts or [Counter() for _ in choices]
        for counts, layer in zip(self._prompt_counts, choices, strict=True):
            counts.update(chain.from_iterable(layer[first - start : split - start]))
        reported = max(first, self.reported_from)
        if self._keeps_routing:
            self._unreported += map(list, zip(*(layer[reported - start :] for layer in choices), strict=True))
        self._unreported_gates += gates[reported - (end - len(gates)) :]
        self._num_seen = max(self._num_seen, end)

    def prompt_tokens(self) -> list[list[int]]:
        """Return [L][E]: the number of prompt positions that were routed to each expert."""
        return [[counts[expert] for expert in range(self._num_experts)] for counts in self._prompt_counts]

    def pop_routing(self) -> list[list[ExpertIds]]:
        """Return [position][L][k] of the positions from `reported_from` on that were added since the last call."""
        unreported, self._unreported = self._unreported, []
        return unreported

    def pop_gates(self) -> list[bytes]:
        """Return the gate logits of the positions that pop_routing() returns: [L][E] little-endian float32 each."""
        unreported, self._unreported_gates = self._unreported_gates, []
        return unreported
