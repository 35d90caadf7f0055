"""An engine in virtual time: the product's scheduler and block pool, with a model of a step's time as its clock."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.scheduling.scheduler import Scheduler
from engine.scheduling.step_plan import Sampled, StepPlan, StepResult
from engine.types import Request, SamplingParams

TOKEN = Sampled(0)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of the load."""

    due_s: float
    num_prompt_tokens: int
    num_output_tokens: int


@dataclass
class Timeline:
    """Times as clients see them, in virtual seconds."""

    ttft_s: list[float] = field(default_factory=list)  # from a request's arrival to its first token
    gaps_s: list[float] = field(default_factory=list)  # between two tokens of a request
    end_s: float = 0.0
    num_tokens: int = 0
    is_overloaded: bool = False  # a first token came later than allowed: the rest was not computed

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.end_s if self.end_s else 0.0


class VirtualEngine:
    """Runs a load through a scheduler."""

    def __init__(self, scheduler: Scheduler, step_s: Callable[[StepPlan], float], request_s: float = 0.0) -> None:
        """`scheduler` is new; its prefix cache should be off, as all prompts are alike. `step_s`: seconds of a plan;
        `request_s`: seconds from a request's arrival until the engine has it."""
        self._scheduler = scheduler
        self._step_s = step_s
        self._request_s = request_s
        self._now_s = 0.0
        self._due_s: dict[int, float] = {}  # by request without a token
        self._last_token_s: dict[int, float] = {}
        self._timeline = Timeline()

    def run(self, arrivals: Sequence[Arrival], max_ttft_s: float) -> Timeline:
        """Compute all requests, in the order of their arrivals; stop if a first token takes more than `max_ttft_s`.

        Raises RequestRejectedError for a request that can never run.
        """
        coming, request_s = deque(enumerate(arrivals)), self._request_s
        while coming or self._scheduler.has_work():
            if not self._scheduler.has_work():
                self._now_s = max(self._now_s, coming[0][1].due_s + request_s)
            while coming and coming[0][1].due_s + request_s <= self._now_s:
                self._add(*coming.popleft())
            self._step()
            if self._is_late(max_ttft_s):
                self._timeline.is_overloaded = True
                break
        self._timeline.end_s = self._now_s
        return self._timeline

    def _add(self, request_id: int, arrival: Arrival) -> None:
        params = SamplingParams(max_tokens=arrival.num_output_tokens, ignore_eos=True)
        self._scheduler.add(Request(request_id, [0] * arrival.num_prompt_tokens, params, arrival_s=arrival.due_s))
        self._due_s[request_id] = arrival.due_s

    def _step(self) -> None:
        plan = self._scheduler.plan(self._now_s)
        assert plan.chunks, "the scheduler has work and plans none"
        self._now_s += self._step_s(plan)
        sampled = {chunk.sequence.request_id: TOKEN for chunk in plan.chunks if chunk.samples}
        for output in self._scheduler.apply(plan, StepResult(dict(sampled)), self._now_s):
            if output.token_ids:
                self._record(output.request_id)
            if output.finish_reason:
                self._last_token_s.pop(output.request_id, None)

    def _record(self, request_id: int) -> None:
        """Record a token."""
        timeline = self._timeline
        timeline.num_tokens += 1
        if request_id in self._last_token_s:
            timeline.gaps_s.append(self._now_s - self._last_token_s[request_id])
        else:
            timeline.ttft_s.append(self._now_s - self._due_s.pop(request_id))
        self._last_token_s[request_id] = self._now_s

    def _is_late(self, max_ttft_s: float) -> bool:
        """Return whether the request that has waited longest has waited too long. They are kept by arrival."""
        return bool(self._due_s) and self._now_s - next(iter(self._due_s.values())) > max_ttft_s
