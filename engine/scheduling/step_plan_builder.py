"""Build the plan of one step."""

from msgspec.structs import replace

from engine.scheduling.prompt_share import PromptShare, is_scored
from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan import Chunk, StepPlan
from engine.scheduling.step_times import StepWork


class StepPlanBuilder:
    """Mutable plan. Chunks can still be removed, and no counter of a sequence has changed before build()."""

    def __init__(self, budget: int, prompt_share: PromptShare) -> None:
        self.budget = budget
        self.prompt_share = prompt_share
        self.chunks: dict[int, Chunk] = {}
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self.num_preemptions = 0
        self.num_blocked = 0
        self._max_positions = budget
        self._num_prefill = 0
        self._num_scored = 0

    def add(self, sequence: Sequence, length: int, *, reaches_end: bool) -> None:
        """Add a chunk. `reaches_end`: it holds all positions that the sequence needs before its next token."""
        samples = reaches_end and sequence.max_generated > 0
        is_prefill = length > 1 or not samples or sequence.num_tokens == sequence.num_prompt_tokens
        self.chunks[sequence.request_id] = Chunk(sequence, sequence.num_scheduled, length, samples, is_prefill)
        self.budget -= length
        if is_prefill:
            self.prompt_share.use(sequence, length)
            self._num_prefill += length
            self._num_scored += length * is_scored(sequence)

    def add_next(self, sequence: Sequence) -> None:
        """Add the chunk of a sequence that decodes, as nearly all do: add() in few calls. It has generated a token."""
        self.chunks[sequence.request_id] = Chunk(sequence, sequence.num_scheduled, 1, True, False)
        self.budget -= 1

    def add_draft(self, sequence: Sequence, draft: tuple[int, ...]) -> None:
        """Add guessed tokens to the chunk of a sequence that decodes. Their positions must have blocks."""
        chunk = self.chunks[sequence.request_id]
        self.chunks[sequence.request_id] = replace(chunk, length=chunk.length + len(draft), draft=draft)
        self.budget -= len(draft)

    @property
    def has_prefill(self) -> bool:
        return self._num_prefill > 0

    def remove_preempted(self, victim: Sequence) -> None:
        """Count a preemption and remove the victim's chunk, if it has one."""
        self.num_preemptions += 1
        chunk = self.chunks.pop(victim.request_id, None)
        if chunk is not None:
            self.budget += chunk.length
            self._num_prefill -= chunk.length * chunk.is_prefill
            self._num_scored -= chunk.length * (chunk.is_prefill and is_scored(victim))

    def build(self, blocks_to_zero: tuple[int, ...], now: float) -> StepPlan:
        """Return the plan and count its chunks as in flight."""
        for chunk in self.chunks.values():
            chunk.sequence.num_scheduled += chunk.length
            chunk.sequence.num_pending_tokens += chunk.samples
            chunk.sequence.num_chunks_in_flight += 1
        return StepPlan(
            tuple(self.chunks.values()),
            self.num_prefix_queries,
            self.num_prefix_hits,
            self.num_preemptions,
            self.num_blocked,
            blocks_to_zero,
            StepWork(len(self.chunks), self._max_positions - self.budget, self._num_scored),
            now,
            self._num_prefill,
        )
