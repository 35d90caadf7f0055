"""One random schedule of the whole system: everything in it follows from its seed."""

import logging
import random

from engine.types import Request, SamplingParams
from tests.simulator.setup import VOCAB, Setup
from tests.simulator.system.clients import Choice, Generation
from tests.simulator.system.engines import KILLS_AT_GRAMMAR, KILLS_AT_PREFILL, KILLS_LATER, Plan
from tests.simulator.system.invariants import Invariants
from tests.simulator.system.simulation import SystemSimulation
from tests.simulator.system.virtual_loop import START_S

log = logging.getLogger("smoe.engine")

NUM_LINES = 60  # of the history, at the end of a violation's message
READY_S = START_S + 1.0  # about when the first engine is ready


class SystemViolationError(AssertionError):
    """A broken promise: the command that repeats it, what is broken, and the history before it."""


def run_seed(seed: int) -> SystemSimulation:
    """Run the schedule of a seed. Raises SystemViolationError."""
    rng = random.Random(f"system {seed}")
    plan, ranks = _plan(rng), random.Random(f"ranks {seed}")
    plan.rank_death_rate, plan.rank_rng = ranks.choice((*(0.0,) * 6, 0.004, 0.03)), ranks
    simulation = SystemSimulation(rng, plan)
    span_s = rng.choice((0.3, 1.0, 4.0, 10.0))
    generations = _generations(rng, simulation.plan, span_s)
    chaos = _chaos(rng, span_s)
    was_disabled, log.disabled = log.disabled, True
    try:
        simulation.run(generations, chaos, rng.choice((0, 0, 1, 3)))
        Invariants(simulation).check()
    except Exception as error:  # noqa: BLE001 (any exception is a violation)
        simulation.truth.violate(repr(error))
    finally:
        log.disabled = was_disabled
    if simulation.truth.violations:
        raise SystemViolationError(_message(seed, simulation))
    return simulation


def _message(seed: int, simulation: SystemSimulation) -> str:
    lines = [f"python -m tests.simulator.system --start {seed} --seeds 1", *simulation.truth.violations[:5]]
    return "\n".join([*lines, "history:", *simulation.truth.history[-NUM_LINES:]])


def _plan(rng: random.Random) -> Plan:
    setup = Setup(
        num_blocks=rng.choice((12, 16, 30)),
        block_size=4,
        budget=rng.choice((5, 16, 64)),
        max_num_seqs=rng.choice((2, 4, 8)),
        max_model_len=40,
        num_tenants=2,
        ahead=rng.random() < 0.4,
        eos=tuple(rng.sample(range(VOCAB), rng.choice((0, 3)))),
    )
    has_other_weights = rng.random() < 0.08
    return Plan(
        setup,
        descriptor=rng.choice((7, 1023, 1024, 5000)),
        max_delay_s=rng.choice((0.0, 0.001, 0.05, 0.3)),
        load_s=rng.choice((0.0, 0.1, 1.0)),
        step_s=rng.choice((0.001, 0.02, 0.1)),
        max_queued=rng.choice((6, 20, 60)),
        cut_rate=rng.choice((0.0, 0.0, 0.0, 0.01)),
        kill_rate_at_arrival=rng.choice((0.0, 0.0, 0.1, 0.3)),
        load_failure_rate=rng.choice((0.0, 0.0, 0.3)),
        changes_weights_in=rng.choice((1, 2)) if has_other_weights else None,
        is_doomed=rng.random() < 0.05,
        heals_stops=rng.random() < 0.5,
        block_counts=(rng.choice((10, setup.num_blocks)), *rng.sample((4, 10, 40), 3)),
    )


def _chaos(rng: random.Random, span_s: float) -> list[tuple[float, str]]:
    """Draw faults and their times: most schedules have a few, a third have none."""
    kinds = ("kill", "kill", "kill", "stop", "continue")
    count = rng.choice((0, 1, 1, 2, 4, 7))
    chaos = [(rng.random() * span_s * rng.choice((1, 1, 3)), rng.choice(kinds)) for _ in range(count)]
    if rng.random() < 0.07:
        chaos.append((rng.random() * span_s * 2, "shut down"))
    if rng.random() < 0.05:
        chaos.append((rng.random() * span_s, "drain"))
    return chaos


def _generations(rng: random.Random, plan: Plan, span_s: float) -> list[tuple[float, Generation]]:
    stem = [rng.randrange(VOCAB) for _ in range(12)]
    killer_rate = rng.choice((0.0, 0.0, 0.0, 0.1, 0.3))
    leave_rate = rng.choice((0.1, 0.1, 0.6))
    next_id = 1
    generations = []
    for number in range(rng.randint(1, 25)):
        starts_s = rng.random() * span_s
        choices = {}
        tenant, grammar = rng.randrange(2), str(rng.randint(0, 3)) if rng.random() < 0.2 else None
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            request = _request(rng, next_id, stem, number, tenant, grammar, killer_rate, READY_S + starts_s)
            choices[next_id] = Choice(request)
            next_id += 1
        leaves_after_s = rng.random() * span_s if rng.random() < leave_rate else None
        generations.append(
            (
                starts_s,
                Generation(choices, leaves_after_s, rng.choice((0.0, 0.1)) if rng.random() < leave_rate / 2 else None),
            )
        )
    return generations


def _request(
    rng: random.Random,
    request_id: int,
    stem: list[int],
    number: int,
    tenant: int,
    grammar: str | None,
    killer_rate: float,
    now_s: float,
) -> Request:
    """Draw one choice of generation `number`, which its field `prompt_index` names."""
    is_killer = rng.random() < killer_rate
    kinds = (KILLS_AT_PREFILL, KILLS_LATER) if grammar is None else (KILLS_AT_GRAMMAR, KILLS_AT_PREFILL)
    prompt = stem[: rng.randint(0, len(stem))] + [rng.randrange(VOCAB) for _ in range(rng.randint(1, 6))]
    return Request(
        request_id,
        prompt,
        SamplingParams(max_tokens=rng.randint(1, 9), seed=rng.choice(kinds) if is_killer else 0, prompt_index=number),
        priority=rng.randint(-1, 1),
        tenant=tenant,
        grammar=grammar,
        deadline_s=now_s + rng.random() * 10 if rng.random() < 0.1 else None,
        queue_deadline_s=now_s + rng.random() * 5 if rng.random() < 0.1 else None,
    )
