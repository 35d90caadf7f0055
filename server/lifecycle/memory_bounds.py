"""Bounds on the memory of requests, made smaller where the memory limit is too small for the usual ones."""

import msgspec

from engine.config import EngineConfig
from server.fairness.budgets import constraint_ids, queued_tokens, request_memory_bytes, server_demand
from server.fairness.request_memory import RequestMemory
from server.generation.reply_size import MAX_REPLY_VALUES, SCORE_BYTES
from server.generation.state import MAX_TOTAL_PROMPT_IDS, ServerState
from server.observability.memory_pressure import MemoryMonitor
from server.settings.settings import Settings

PROMPT_IDS_PER_QUEUED = 4  # one request may carry so many times the ids that may wait: usually MAX_TOTAL_PROMPT_IDS


def with_server_memory(config: EngineConfig, settings: Settings) -> EngineConfig:
    """Return the engine's configuration with the memory that processes and requests need beside weights and KV cache.
    The engine decides how much of it fits, because it knows the sizes of both."""
    demand = server_demand(settings)
    return msgspec.structs.replace(
        config,
        server_bytes=demand.usual_bytes,
        ample_server_bytes=demand.ample_bytes,
        min_server_bytes=demand.least_bytes,
    )


def apply_memory_share(share: float, settings: Settings, bodies: RequestMemory, state: ServerState) -> None:
    """Bound the memory of requests by a share from 0 to 1, see engine/capacity/memory_share.py. With 1
    everything stays as it is, and so do bounds that flags set.

    A single request is bounded too, since it may exceed a budget that is empty.
    """
    if share >= 1.0:
        return
    request_memory, tokens = request_memory_bytes(settings, share), queued_tokens(settings, share)
    bodies.resize(request_memory)
    state.reply_memory.resize(request_memory)
    state.admission.resize(tokens, constraint_ids(share))
    if settings.request_memory_bytes is None:
        state.max_reply_values = min(MAX_REPLY_VALUES, request_memory // SCORE_BYTES)
    if settings.max_num_queued_tokens is None:
        state.max_total_prompt_ids = min(MAX_TOTAL_PROMPT_IDS, PROMPT_IDS_PER_QUEUED * tokens)


def memory_monitor(limit_bytes: int | None, bodies: RequestMemory) -> MemoryMonitor | None:
    """Return the monitor of memory, which ends bodies that are being read at "critical"; None without a known limit."""
    return None if limit_bytes is None else MemoryMonitor(limit_bytes, on_critical=bodies.evict_reading)
