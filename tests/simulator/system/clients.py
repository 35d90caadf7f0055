"""Clients of two tenants: each submits a generation, reads its outputs or leaves, and records how each choice ended."""

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.config import max_slots_per_tenant
from engine.types import Request, RequestOutput
from server.engine_client.output_collector import EngineDied
from server.errors import ApiError

if TYPE_CHECKING:
    from tests.simulator.system.simulation import SystemSimulation

NUM_ATTEMPTS, RETRY_S = 20, 0.3


@dataclass
class Choice:
    """One request and how it ended for its client: a finish reason, "left", "refused", or "gone" with the engine."""

    request: Request
    token_ids: list[int] = field(default_factory=list)
    end: str | None = None
    error: str | None = None
    submitted_s: float = 0.0
    ended_s: float = 0.0
    ids_in_engine: frozenset[int] = frozenset()  # when it ended, or when the engine before that did
    num_engines_ended: int = 0  # when it ended
    num_engines_started: int = 0  # when it ended


@dataclass
class Generation:
    """Choices that were submitted together."""

    choices: dict[int, Choice]
    leaves_after_s: float | None = None
    leaves_after_output_s: float | None = None  # as with a stop string


async def run_client(simulation: "SystemSimulation", generation: Generation, starts_s: float) -> None:
    """Submit one generation and read it to its end, as server/generation/generation.py does."""
    await asyncio.sleep(starts_s)
    requests = [choice.request for choice in generation.choices.values()]
    client = simulation.client
    refusal = await _admission(simulation, requests)
    if refusal is not None:
        for choice in generation.choices.values():
            simulation.end(choice, "refused", refusal.code)
        return
    simulation.note(f"submit {[(r.request_id, f'tenant {r.tenant}', r.params.seed) for r in requests]}")
    for choice in generation.choices.values():
        choice.submitted_s = simulation.machine.time()
    collector = client.submit(requests)
    reader = asyncio.ensure_future(_read(simulation, generation, collector))
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader, generation.leaves_after_s)
        open_ids = [id_ for id_, choice in generation.choices.items() if choice.end is None]
        for request_id in open_ids:
            simulation.end(generation.choices[request_id], "left")
        if open_ids:
            client.abort(open_ids)
    finally:
        collector.close()
        for request in requests:
            simulation.admission.remove(request.request_id)


async def _admission(simulation: "SystemSimulation", requests: list[Request]) -> ApiError | None:
    """Wait for admission, as clients do that send a refused request again. Returns the error of the last attempt."""
    for _ in range(NUM_ATTEMPTS):
        try:
            simulation.admission.admit(requests)
        except ApiError as error:
            refusal = error
            simulation.truth.count(f"refusal: {error.code}")
            if simulation.client.status.phase in ("draining", "dead"):
                break
        else:
            _check_share(simulation, requests)
            return None
        await asyncio.sleep(RETRY_S)
    return refusal


def _check_share(simulation: "SystemSimulation", admitted: list[Request]) -> None:
    """Note a violation if a tenant has more choices in the queue than its share; one generation may exceed it alone."""
    tenant = admitted[0].tenant
    num_waiting = simulation.admission._num_choices[tenant]
    if num_waiting > max(max_slots_per_tenant(simulation.plan.max_queued), len(admitted)):
        simulation.truth.violate(f"tenant {tenant} has {num_waiting} choices in the queue")


async def _read(simulation: "SystemSimulation", generation: Generation, collector: object) -> None:
    while any(choice.end is None for choice in generation.choices.values()):
        try:
            outputs = await collector.get()  # type: ignore[attr-defined]
        except EngineDied as gone:
            for choice in generation.choices.values():
                if choice.end is None:
                    simulation.end(choice, "gone", str(gone))
            return
        for output in outputs:
            _record(simulation, generation, output)
        if generation.leaves_after_output_s is not None:
            await asyncio.sleep(generation.leaves_after_output_s)
            return


def _record(simulation: "SystemSimulation", generation: Generation, output: RequestOutput) -> None:
    choice = generation.choices[output.request_id]
    if choice.end is not None:
        simulation.truth.violate(f"request {output.request_id} has an output after its end")
    choice.token_ids += output.token_ids
    simulation.admission.remove(output.request_id)
    if output.finish_reason is not None:
        simulation.end(choice, output.finish_reason, output.error)


async def ask_about_experts(simulation: "SystemSimulation", rng: random.Random, starts_s: float) -> None:
    """Ask once about experts: an answer or EngineDied must come."""
    await asyncio.sleep(starts_s)
    try:
        await simulation.client.experts(rng.choice((None, 5.0)), reset=rng.random() < 0.3)
        simulation.truth.count("experts answered")
    except EngineDied:
        simulation.truth.count("experts refused")
