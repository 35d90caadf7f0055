"""A step as plain data: what to compute (Scheduler -> runner), and what came of it (runner -> Scheduler)."""

from dataclasses import dataclass, field
from typing import NamedTuple

from engine.scheduling.sequence import Sequence
from engine.types import ExpertChoices, TokenLogprobs


class Chunk(NamedTuple):
    """Positions start .. start+length-1 of one sequence, to be computed in this step.

    A sequence of 5 prompt tokens under a budget of 3: Chunk(start=0, length=3, samples=False), then Chunk(3, 2, True),
    whose last row's logits give token 5; then Chunk(5, 1, True), and so on. (All but the last are prefill.)
    """

    sequence: Sequence  # read token_ids and block_table before the plan is applied; mutate nothing
    start: int
    length: int
    samples: bool  # the last position's logits give a new token
    is_prefill: bool  # computes a prompt, or recomputes what a preemption dropped


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step's work. The rows of a step are the chunks' positions, in this order."""

    chunks: tuple[Chunk, ...]
    num_prefix_queries: int = 0
    num_prefix_hits: int = 0
    num_preemptions: int = 0
    num_blocked: int = 0  # requests that got no block, since those that could give one are in flight
    blocks_to_zero: tuple[int, ...] = ()  # blocks to be filled with zeros, once, before the step is launched

    @property
    def num_tokens(self) -> int:
        return sum(chunk.length for chunk in self.chunks)


class Sampled(NamedTuple):
    """The token that a chunk's last row gave."""

    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class RowFailed:
    """The row's own data was bad (a NaN in its logits): its request ends, the others go on."""

    message: str


@dataclass(frozen=True, slots=True)
class StepResult:
    """Outcomes by request id. A chunk that samples has an entry in `sampled`; any other only if it failed."""

    sampled: dict[int, Sampled | RowFailed]
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    expert_choices: dict[int, ExpertChoices] = field(default_factory=dict)  # of the chunks' positions, where wanted
