"""A step as plain data: the work (Scheduler -> ModelRunner) and its results (ModelRunner -> Scheduler)."""

from dataclasses import dataclass, field
from typing import NamedTuple

from engine.scheduling.sequence import Sequence
from engine.scheduling.step_times import NO_WORK, StepWork
from engine.types import ExpertChoices, TokenLogprobs


class Chunk(NamedTuple):
    """Positions start .. start+length-1 of one sequence that a step computes.

    A sequence of 5 prompt tokens under a budget of 3: Chunk(start=0, length=3, samples=False), then Chunk(3, 2, True),
    whose last row's logits give token 5; then Chunk(5, 1, True), and so on. The first two are prefill.
    """

    sequence: Sequence  # read token_ids and block_table before the plan is applied; mutate nothing
    start: int
    length: int
    samples: bool  # the last position's logits give a new token
    is_prefill: bool  # computes a prompt, or recomputes positions after a preemption

    @property
    def embeds(self) -> bool:
        """True if the last position's hidden state is the embedding of the request's prompt."""
        sequence = self.sequence
        return sequence.request.embedding_len is not None and self.start + self.length == sequence.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Work of one step. Its rows are the positions of the chunks, in this order."""

    chunks: tuple[Chunk, ...]
    num_prefix_queries: int = 0
    num_prefix_hits: int = 0
    num_preemptions: int = 0
    num_blocked: int = 0  # requests without a block, because all possible victims are in flight
    blocks_to_zero: tuple[int, ...] = ()  # to be filled with zeros, once, before the step is launched
    work: StepWork = NO_WORK
    planned_s: float = 0.0  # time.monotonic()

    @property
    def num_tokens(self) -> int:
        return sum(chunk.length for chunk in self.chunks)


class Sampled(NamedTuple):
    """Token sampled from the logits of a chunk's last row."""

    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class RowFailed:
    """Failure of one row by its own data, such as NaN in its logits. Its request ends; the others continue."""

    message: str


@dataclass(frozen=True, slots=True)
class StepResult:
    """Results by request id. A chunk that samples has an entry in `sampled`; any other chunk only if it failed."""

    sampled: dict[int, Sampled | RowFailed]
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    expert_choices: dict[int, ExpertChoices] = field(default_factory=dict)  # of requests that report experts
    embeddings: dict[int, bytes] = field(default_factory=dict)  # of requests whose prompt is complete and embedded
