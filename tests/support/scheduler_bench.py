"""A scheduler over the exact model, without an engine: for tests that act between plan and apply."""

import random
from dataclasses import dataclass, field
from typing import Any

from engine.scheduling.blocks.geometry import BlockGeometry
from engine.scheduling.blocks.manager import BlockManager
from engine.scheduling.blocks.pool import BlockPool
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.step_plan import StepPlan, StepResult
from engine.types import Request, RequestOutput, SamplingParams
from tests.simulator.exact import ExactRunner, oracle, root_of

VOCAB = 97


@dataclass
class Bench:
    """A scheduler with its exact model, and all outputs so far. `ahead`: plans a step while one is in flight."""

    num_blocks: int = 64
    block_size: int = 4
    window: int | None = None
    budget: int = 16
    max_num_seqs: int = 8
    max_model_len: int = 10_000
    prefix_caching: bool = True
    by_priority: bool = True
    eos: tuple[int, ...] = ()
    ahead: bool = False
    tokens: dict[int, list[int]] = field(default_factory=dict)
    finished: dict[int, str] = field(default_factory=dict)
    requests: dict[int, Request] = field(default_factory=dict)
    plans: list[StepPlan] = field(default_factory=list)

    def __post_init__(self) -> None:
        geometry = BlockGeometry(self.block_size, self.window, self.budget)
        self.block_manager = BlockManager(BlockPool(self.num_blocks), geometry, prefix_caching=self.prefix_caching)
        servable = geometry.max_servable_tokens(self.num_blocks) or self.max_model_len
        self.scheduler = Scheduler(
            self.block_manager,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.budget,
            max_model_len=min(self.max_model_len, servable),
            eos_token_ids=self.eos,
            by_priority=self.by_priority,
        )
        self.runner = ExactRunner(self.num_blocks, self.block_size, self.window, VOCAB)
        self.in_flight: list[tuple[StepPlan, StepResult]] = []
        self.now = 0.0

    def add(
        self,
        prompt: list[int],
        max_tokens: int = 8,
        priority: int = 0,
        salt: str = "",
        *,
        steps: float | None = None,
        queue_steps: float | None = None,
        **params: object,
    ) -> int:
        """Add a request and return its id. `steps`, `queue_steps`: deadlines; a step takes one second here."""
        request_id = len(self.requests)
        sampling = SamplingParams(max_tokens=max_tokens, **params)  # type: ignore[arg-type]
        ends, queue_ends = (None if timeout is None else self.now + timeout for timeout in (steps, queue_steps))
        request = Request(
            request_id, prompt, sampling, priority, salt, self.now, deadline_s=ends, queue_deadline_s=queue_ends
        )
        self.scheduler.add(request)
        self.requests[request_id] = request
        return request_id

    def step(self) -> StepPlan:
        """Run one step. With `ahead`, plan it before the step in flight is applied."""
        self.now += 1.0
        self.record(self.scheduler.expire(self.now))
        plan = self.scheduler.plan(self.now)
        assert plan.num_tokens <= self.budget
        self.plans.append(plan)
        if plan.chunks:
            self.in_flight.append((plan, self.runner.run(plan)))
        while len(self.in_flight) > (self.ahead and bool(plan.chunks)):
            self.apply(*self.in_flight.pop(0))
        self.scheduler.check_integrity()
        return plan

    def apply(self, plan: StepPlan, result: StepResult) -> None:
        self.record(self.scheduler.apply(plan, result, self.now))

    def record(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            assert output.request_id not in self.finished, "an output after the end"
            self.tokens.setdefault(output.request_id, []).extend(output.token_ids)
            if output.finish_reason:
                self.finished[output.request_id] = output.finish_reason

    def run(self, max_steps: int = 10_000) -> None:
        while self.scheduler.has_work() or self.in_flight:
            max_steps -= 1
            assert max_steps, "no progress"
            self.step()
        self.assert_idle()

    def assert_idle(self) -> None:
        self.scheduler.check_integrity()
        assert self.block_manager.pool.num_held == 0
        assert not self.scheduler.requests.unfinished

    def expected(self, request_id: int) -> list[int]:
        """Return the request's tokens according to the oracle."""
        request = self.requests[request_id]
        max_new_tokens = self.scheduler.max_model_len - len(request.prompt_token_ids)
        count = min(request.params.max_tokens, max_new_tokens)
        return oracle(root_of(request), request.prompt_token_ids, count, self.window, VOCAB) if count else []


def random_prompt(rng: random.Random, low: int, high: int) -> list[int]:
    return [rng.randrange(VOCAB) for _ in range(rng.randint(low, high))]


class TenantBench(Bench):
    """A Bench whose requests have tenants."""

    def __init__(self, num_tenants: int = 2, share_prefix_cache: bool = False, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.scheduler = Scheduler(
            self.block_manager,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.budget,
            max_model_len=self.scheduler.max_model_len,
            eos_token_ids=self.eos,
            by_priority=self.by_priority,
            num_tenants=num_tenants,
            share_prefix_cache=share_prefix_cache,
        )

    def add_for(self, tenant: int, prompt: list[int], max_tokens: int, priority: int = 0, **fields: Any) -> int:
        request_id = len(self.requests)
        params = SamplingParams(max_tokens=max_tokens)
        request = Request(request_id, prompt, params, priority, arrival_s=self.now, tenant=tenant, **fields)
        self.scheduler.add(request)
        self.requests[request_id] = request
        return request_id

    def served(self, tenant: int) -> int:
        return self.scheduler.fair_share.served(tenant)
