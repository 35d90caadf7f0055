"""Gate logits of the positions for which requests want them: rows of a step, and the results by request.

Letters: L layers, E experts, P reported positions of a step.
"""

from dataclasses import dataclass

import numpy as np
import torch

from engine.execution.device_transfer import HostArray, to_device
from engine.scheduling.step_plan import Chunk
from model.config import ModelConfig
from model.forward_batch import GateRows


@dataclass(frozen=True)
class PendingGates:
    """Gate logits on their way from the device."""

    counts: list[tuple[int, int]]  # request id and number of reported positions, in the order of the rows
    logits: HostArray  # [L, P, E] float32


def gate_rows(chunks: tuple[Chunk, ...], model: ModelConfig, device: torch.device) -> GateRows | None:
    """Return the step's rows whose gate logits are reported; None if there are none.

    Example: chunks of 2, 3 and 1 positions, of which the second reports its last two: rows 3 and 4.
    """
    if not any(chunk.sequence.experts for chunk in chunks):
        return None
    ends = np.cumsum([chunk.length for chunk in chunks])
    parts = [np.arange(end - chunk.num_gate_rows, end) for chunk, end in zip(chunks, ends, strict=True)]
    rows = np.concatenate(parts).astype(np.int64)
    if not len(rows):
        return None
    shape = model.num_layers, len(rows), model.num_experts
    return GateRows(to_device(rows, device), torch.empty(shape, dtype=torch.float32, device=device))


def copy_gates(chunks: tuple[Chunk, ...], gates: GateRows | None) -> PendingGates | None:
    """Queue the copy of the computed gate logits to the host."""
    if gates is None:
        return None
    counts = [(chunk.sequence.request_id, chunk.num_gate_rows) for chunk in chunks if chunk.num_gate_rows]
    return PendingGates(counts, HostArray(gates.logits))


def finish_gates(pending: PendingGates | None) -> dict[int, list[bytes]]:
    """Wait for the gate logits; return them by request, one [L, E] of little-endian float32 per position."""
    if pending is None:
        return {}
    positions = pending.logits.wait().swapaxes(0, 1).astype("<f4")  # [P, L, E]
    found: dict[int, list[bytes]] = {}
    first = 0
    for request_id, count in pending.counts:
        found[request_id] = [position.tobytes() for position in positions[first : first + count]]
        first += count
    return found
