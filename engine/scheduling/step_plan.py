"""A step as plain data: the work (Scheduler -> ModelRunner) and its results (ModelRunner -> Scheduler)."""

from dataclasses import dataclass
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from engine.scheduling.sequence import Sequence
from engine.scheduling.step_times import NO_WORK, StepWork
from engine.types import ExpertChoices, TokenLogprobs


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """Positions start .. start+length-1 of one sequence that a step computes.

    A sequence of 5 prompt tokens under a budget of 3: Chunk(start=0, length=3, samples=False), then Chunk(3, 2, True),
    whose last row's logits give token 5; then Chunk(5, 1, True), and so on. The first two are prefill.

    The last positions may hold a draft, guessed tokens behind the last known one. Chunk(5, 3, True, draft=(8, 9)) has
    token 5 at position 5 and the guesses at 6 and 7. Each of the three rows samples: the token for position 6, and
    those behind 8 and behind 8 9, which count only if the tokens before them were guessed right.
    """

    sequence: Sequence  # read token_ids and block_table before the plan is applied; mutate nothing
    start: int
    length: int
    samples: bool  # the last position's logits give a new token
    is_prefill: bool  # computes a prompt, or recomputes positions after a preemption
    draft: tuple[int, ...] = ()  # guessed tokens at the last positions, which `length` includes

    @property
    def embeds(self) -> bool:
        """True if the last position's hidden state is the embedding of the request's prompt."""
        sequence = self.sequence
        return sequence.request.embedding_len is not None and self.start + self.length == sequence.num_prompt_tokens

    @property
    def num_gate_rows(self) -> int:
        """Number of positions, the last ones, whose gate logits the request reports."""
        experts = self.sequence.experts
        if experts is None or not experts.reports_gates:
            return 0
        return max(0, self.start + self.length - max(self.start, experts.reported_from))

    def without_draft(self) -> "Chunk":
        """Return the chunk of the known tokens alone."""
        return replace(self, length=self.length - len(self.draft), draft=()) if self.draft else self


class StepPlan(msgspec.Struct, frozen=True, gc=False):
    """Work of one step. Its rows are the positions of the chunks, in this order."""

    chunks: tuple[Chunk, ...]
    num_prefix_queries: int = 0
    num_prefix_hits: int = 0
    num_preemptions: int = 0
    num_blocked: int = 0  # requests without a block, because all possible victims are in flight
    blocks_to_zero: tuple[int, ...] = ()  # to be filled with zeros, once, before the step is launched
    work: StepWork = NO_WORK
    planned_s: float = 0.0  # time.monotonic()
    num_prefill_tokens: int = 0  # positions of the chunks with is_prefill

    @property
    def num_tokens(self) -> int:
        return sum(chunk.length for chunk in self.chunks)

    @property
    def num_drafted(self) -> int:
        return sum(len(chunk.draft) for chunk in self.chunks)


class Sampled(msgspec.Struct, frozen=True, gc=False):
    """Token sampled from the logits of a chunk's last row; the last one before a draft if it has one."""

    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class RowFailed:
    """Failure of one row by its own data, such as NaN in its logits. Its request ends; the others continue."""

    message: str


class StepResult(msgspec.Struct, frozen=True, gc=False):
    """Results by request id. A chunk that samples has an entry in `sampled`; any other chunk only if it failed.

    A chunk may return fewer tokens than its draft allows, even none behind it; the rest is computed in later steps.
    """

    sampled: dict[int, Sampled | RowFailed]
    prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
    expert_choices: dict[int, ExpertChoices] = {}  # of requests that report experts
    embeddings: dict[int, bytes] = {}  # of requests whose prompt is complete and embedded
    behind_drafts: dict[int, list[Sampled]] = {}  # sampled behind each accepted drafted token
    gate_logits: dict[int, list[bytes]] = {}  # of each position that a request reports


class DraftCounts(NamedTuple):
    """Drafted tokens of computed steps, and those of them that were right."""

    num_drafted: int = 0
    num_accepted: int = 0

    def plus(self, plan: StepPlan, result: StepResult) -> "DraftCounts":
        """Return the counts with those of one more step."""
        num_accepted = sum(map(len, result.behind_drafts.values()))
        return DraftCounts(self.num_drafted + plan.num_drafted, self.num_accepted + num_accepted)


NO_DRAFTS = DraftCounts()
