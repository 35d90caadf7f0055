"""One random schedule: setup and fault rates from a seed; a phase with faults; then none, and all must finish."""

import logging
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import engine.scheduling.sequence
from engine.scheduling.block_hash import BlockHash
from tests.simulator.exact import DIM
from tests.simulator.faults import POINTS, Point
from tests.simulator.setup import NUM_EXPERTS, NUM_LAYERS, VOCAB, Setup
from tests.simulator.simulation import Simulation
from tests.support.paths import ROOT

OF_DRAFTS: Point = "nan in a draft"  # drawn by itself: it has no place in schedules without drafts

log = logging.getLogger("smoe.engine")


class ViolationError(AssertionError):
    """A broken promise. The message is one line: the command that repeats the failure."""


def run_seed(seed: int) -> Simulation:
    """Run the schedule of a seed. Raises ViolationError."""
    rng = random.Random(seed)
    tenants, embeddings = random.Random(f"tenants {seed}"), random.Random(f"embeddings {seed}")
    setup = replace(_setup(rng), num_tenants=tenants.choice([1, 1, 2, 3]))
    shares, drafts = random.Random(f"shares {seed}"), random.Random(f"drafts {seed}")
    setup = replace(
        setup,
        position_s=shares.choice([0.0, 0.1, 0.3]) if setup.num_tenants > 1 else 0.0,
        prompt_s=shares.choice([0.06, 0.5, 2.0]),
        min_positions=shares.choice([1, 2, 5, 16]),
        drafts=drafts.random() < 0.4,
    )
    if setup.drafts:
        setup = replace(setup, with_rows=setup.with_rows or drafts.random() < 0.3)
    rates = _rates(rng)
    if setup.drafts and drafts.random() < 0.5:
        rates[OF_DRAFTS] = 0.1
    simulation = Simulation(setup, rng, rates)
    with _child_hashes(weak=setup.window is None and rng.random() < 0.2):
        log.disabled = True  # the engine logs injected faults
        try:
            _chaos(simulation, rng, tenants, embeddings)
            simulation.heal()
            simulation.run()
        except Exception as error:
            line = (
                f"python -m tests.simulator --seed {seed}  # log {simulation.log_hash}, commit {_commit()}: {error!r}"
            )
            raise ViolationError(line) from error
        finally:
            log.disabled = False
    return simulation


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def _setup(rng: random.Random) -> Setup:
    """Draw a setup. Half of them are tight: many requests in a pool for little more than one."""
    is_tight = rng.random() < 0.5
    window = rng.choice([None, None, 3, 4, 7, 16])
    block_size = rng.choice([1, 2, 4, 16])
    max_model_len = rng.choice([30, 45] if is_tight else [12, 30, 45])
    enough = -(-max_model_len // block_size)  # for one request
    num_blocks = (
        rng.choice([1, 2, 3])
        if rng.random() < 0.1
        else round(enough * rng.choice([1, 1.1, 1.4] if is_tight else [0.7, 1, 1.7, 3]))
    )
    if window and num_blocks < -(-window // block_size) + 1:
        window = None
    return Setup(
        num_blocks=num_blocks,
        block_size=block_size,
        window=window,
        budget=rng.choice([5, 16, 64] if is_tight else [1, 2, 5, 16]),
        max_num_seqs=rng.choice([4, 8] if is_tight else [1, 3, 8]),
        max_model_len=max_model_len,
        prefix_caching=rng.random() < 0.7,
        by_priority=rng.random() < 0.5,
        ahead=rng.random() < 0.5,
        eos=tuple(rng.sample(range(VOCAB), rng.choice([0, 0, 3, 20]))),
        with_rows=rng.random() < 0.12,
        first_id=rng.choice([0, 10**9, 2**53]),
    )


def _rates(rng: random.Random) -> dict[Point, float]:
    """Draw fault rates: most schedules have few kinds of faults, some have none, some have all."""
    share = rng.choice([0.0, 0.15, 0.3, 1.0])
    rates: dict[Point, float] = {
        p: rng.choice([0.01, 0.03, 0.1]) for p in POINTS if p != OF_DRAFTS and rng.random() < share
    }
    # These end requests: with too many of them, no request would finish.
    ending: tuple[Point, ...] = ("raise for all", "nan", "raise for one", "clock", "corrupt block")
    for point in ending:
        if point in rates:
            rates[point] = min(rates[point], 0.03)
    return rates


def _chaos(simulation: Simulation, rng: random.Random, tenants: random.Random, embeddings: random.Random) -> None:
    """Add requests and step. Half of those without tokens to generate are prompts to embed."""
    stem = _tokens(rng, rng.randint(1, simulation.setup.max_model_len // 2))  # shared by some prompts
    rate = rng.choice([0.2, 0.4, 1.0])
    for _ in range(rng.randint(5, 50)):
        if rng.random() < rate:
            tenant = tenants.randrange(simulation.setup.num_tenants)
            request = _request(rng, stem, simulation.clock.now)
            if request["max_tokens"] == 0 and embeddings.random() < 0.5:
                request["embedding_len"] = embeddings.choice([3, DIM])
            simulation.add(**request, tenant=tenant)
        simulation.step()


def _tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(VOCAB) for _ in range(count)]


def _request(rng: random.Random, stem: list[int], now: float) -> dict[str, Any]:
    """Draw the fields of a request. Most are plain; every field that scheduling reads is set sometimes."""
    prompt = stem[: rng.randint(0, len(stem))] + _tokens(rng, rng.randint(1, 10))
    params: dict[str, object] = {}
    if rng.random() < 0.2:
        params = {
            "min_tokens": rng.randint(0, 4),
            "stop_token_ids": tuple(rng.sample(range(VOCAB), 20)),
            "ignore_eos": rng.random() < 0.5,
        }
    request: dict[str, Any] = {
        "prompt": prompt,
        "max_tokens": rng.choice([0, rng.randint(1, 6), rng.randint(5, 40)]),
        "priority": rng.randint(-1, 1),
        "params": params,
    }
    if rng.random() < 0.3:
        request["cache_salt"] = rng.choice(["b", "c"])
    if rng.random() < 0.3:
        request["experts_per_token"] = rng.randint(1, 3)
    if rng.random() < 0.15:
        request["expert_usage"] = request["expert_routing"] = True
    if rng.random() < 0.1:
        request["expert_mask"] = [[True, True, True, expert] for expert in rng.choices((True, False), k=NUM_LAYERS)]
        assert NUM_EXPERTS == 4
    if rng.random() < 0.15:
        request["grammar"] = str(rng.randint(0, 3))
    if rng.random() < 0.2:
        request["deadline_s"] = now + rng.randint(0, 30)
    if rng.random() < 0.2:
        request["queue_deadline_s"] = now + rng.randint(0, 20)
    return request


class WeakHash(bytes):
    """A hash that blocks with other tokens have too. `strong`: the true hash, from which child hashes are made."""

    strong: BlockHash


@contextmanager
def _child_hashes(weak: bool) -> Iterator[None]:
    """Replace child_hash. Weak: blocks behind the same prefix often collide, so that only their tokens differ.

    Use it without a window only: with one, a block is looked up even if the block before it was not found.
    """
    strong_hash = engine.scheduling.sequence.child_hash

    def child_hash(parent: BlockHash, token_ids: tuple[int, ...]) -> BlockHash:
        true_parent = parent.strong if isinstance(parent, WeakHash) else parent
        weak_hash = WeakHash(strong_hash(true_parent, [token_ids[0] % 2]))
        weak_hash.strong = strong_hash(true_parent, token_ids)
        return weak_hash

    if weak:
        engine.scheduling.sequence.child_hash = child_hash  # type: ignore[assignment]
    try:
        yield
    finally:
        engine.scheduling.sequence.child_hash = strong_hash
