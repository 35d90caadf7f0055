"""The table of budgets: what clients can make the server hold in memory, by kind. Arithmetic only.

Each row is enforced where it is named; the sum is compared with the memory limit at start and by `smoe doctor`. Where
the limit is too small, the rows that no flag sets are smaller (engine/capacity/memory_share.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.capacity.machine.host_resources import format_bytes, memory_limit_bytes
from engine.capacity.memory_share import AMPLE, ServerDemand, scaled
from engine.grammars.parser_limits import PARSER_BYTES, max_parsers
from server.sandbox.job import limits_within, num_workers_within
from server.settings.settings import Settings

MIN_REQUEST_MEMORY, MAX_REQUEST_MEMORY = 32 << 20, 2 << 30
SHARE_OF_LIMIT = 8  # request bodies get one part of the memory limit, replies another
TOKENS_PER_CHOICE = 1024  # default bound on waiting token ids, per choice that may wait
ID_BYTES = 96  # of one waiting token id: integers in both processes, and on the socket between them
# Of one open choice: its objects in both processes, and outputs that a usual client has not read yet. Each token that a
# slow client leaves unread takes 8 to 20 bytes more, up to max_tokens: in no row.
CHOICE_BYTES = 12 << 10
CONSTRAINT_BYTES = 24  # of one id of biases, allowed tokens or bad words: in the request, and prepared for a row
MAX_CONSTRAINT_IDS = 1 << 21  # of all open choices
FRAME_BYTES = 8 << 20  # of frames between the two processes that are being written or read
PROCESS_BYTES = 330 << 20  # of all processes without weights, KV cache and requests: 231 MiB idle, and growth

# Ample and least sizes, where memory is short.
AMPLE_REQUEST_MEMORY, LEAST_REQUEST_MEMORY = 128 << 20, MIN_REQUEST_MEMORY
AMPLE_QUEUED_TOKENS, LEAST_QUEUED_TOKENS = 1 << 18, 1 << 17
AMPLE_CONSTRAINT_IDS, LEAST_CONSTRAINT_IDS = 1 << 19, 1 << 18


@dataclass(frozen=True)
class Budget:
    """One row: the most bytes of one kind."""

    name: str
    num_bytes: int
    set_by: str  # the flag, or "" for a fixed bound
    refusal: str  # status and code of requests beyond it


def request_memory_bytes(settings: Settings, share: float = 1.0) -> int:
    """Return the bound on request bodies; replies have a bound of the same size."""
    if settings.request_memory_bytes is not None:
        return settings.request_memory_bytes
    limit = memory_limit_bytes() or MAX_REQUEST_MEMORY * SHARE_OF_LIMIT
    usual = min(MAX_REQUEST_MEMORY, max(MIN_REQUEST_MEMORY, limit // SHARE_OF_LIMIT))
    return scaled(usual, AMPLE_REQUEST_MEMORY, LEAST_REQUEST_MEMORY, share)


def queued_tokens(settings: Settings, share: float = 1.0) -> int:
    """Return the bound on waiting token ids."""
    if settings.max_num_queued_tokens is not None:
        return settings.max_num_queued_tokens
    usual = settings.max_num_queued_reqs * TOKENS_PER_CHOICE
    return scaled(usual, AMPLE_QUEUED_TOKENS, LEAST_QUEUED_TOKENS, share)


def constraint_ids(share: float = 1.0) -> int:
    """Return the bound on ids of biases, allowed tokens and bad words."""
    return scaled(MAX_CONSTRAINT_IDS, AMPLE_CONSTRAINT_IDS, LEAST_CONSTRAINT_IDS, share)


def budgets(settings: Settings, share: float = 1.0) -> list[Budget]:
    """Return the table, in the order in which a request meets the rows. `share`: the memory share, from 0 to 1."""
    request_memory, limit_bytes = request_memory_bytes(settings, share), memory_limit_bytes()
    num_choices = settings.max_num_queued_reqs + settings.max_num_seqs
    sandbox_bytes = num_workers_within(limit_bytes) * limits_within(limit_bytes).memory_bytes
    return [
        Budget("request bodies", request_memory, "--request-memory-bytes", "503 request_memory_full"),
        Budget(
            "waiting tokens", queued_tokens(settings, share) * ID_BYTES, "--max-num-queued-tokens", "429 queue_full"
        ),
        Budget("constraints", constraint_ids(share) * CONSTRAINT_BYTES, "", "429 constraints_full"),
        Budget("grammars", max_parsers(limit_bytes, share) * PARSER_BYTES, "", "they wait for their turn"),
        Budget("choices", num_choices * CHOICE_BYTES, "--max-num-queued-reqs", "429 queue_full"),
        Budget("sandbox", sandbox_bytes, "", "400"),
        Budget("replies", request_memory, "--request-memory-bytes", "429 reply_memory_full"),
        Budget("frames", FRAME_BYTES, "", "the engine waits"),
    ]


def total_bytes(table: Sequence[Budget]) -> int:
    """Return the sum of the table."""
    return sum(budget.num_bytes for budget in table)


def server_demand(settings: Settings) -> ServerDemand:
    """Return the memory beside weights and KV cache: of processes and requests."""
    return ServerDemand(*(PROCESS_BYTES + total_bytes(budgets(settings, share)) for share in (1.0, AMPLE, 0.0)))


def summary(table: Sequence[Budget], share: float = 1.0) -> str:
    """Return one line: "267.0 MiB for requests: request bodies 77.0 MiB, ..."."""
    rows = ", ".join(f"{budget.name} {format_bytes(budget.num_bytes)}" for budget in table)
    reduced = " (reduced to fit the memory limit)" if share < 1.0 else ""
    return f"{format_bytes(total_bytes(table))} for requests{reduced}: {rows}"


def shortage(table: Sequence[Budget], model_bytes: int, limit_bytes: int | None) -> str | None:
    """Return one line if the budgets do not fit beside the model, else None.

    `model_bytes`: weights and KV cache in the memory that `limit_bytes` bounds; None: no bound is known.
    """
    needed = model_bytes + PROCESS_BYTES + total_bytes(table)
    if limit_bytes is None or needed <= limit_bytes:
        return None
    flags = ", ".join(dict.fromkeys(budget.set_by for budget in table if budget.set_by))
    return (
        f"weights, KV cache, processes and requests may need {format_bytes(needed)}, but the memory limit is "
        f"{format_bytes(limit_bytes)}; lower --kv-cache-memory-bytes, {flags}"
    )
