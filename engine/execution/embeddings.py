"""Embeddings of prompts: the hidden state of the last token behind the final norm, cut and scaled to length 1.

Cutting to the first numbers and scaling again is how models trained for shorter embeddings are used (Kusupati et al.
2022, Matryoshka representations). Letters: P embeddings of a step, D model dim.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.execution.device_transfer import HostArray, to_device
from engine.scheduling.step_plan import Chunk
from model.forward_batch import HiddenRows

SMALLEST_LENGTH = 1e-12  # a shorter vector has no direction: it stays as it is, near 0


@dataclass(frozen=True)
class PendingEmbeddings:
    """Hidden states on their way from the device."""

    chunks: list[Chunk]  # P, whose last position is the last of a prompt to embed
    states: HostArray  # [P, D] float32


def hidden_rows(chunks: tuple[Chunk, ...], dim: int, device: torch.device) -> HiddenRows | None:
    """Return the step's rows whose hidden state becomes an embedding; None if there are none."""
    ends = np.cumsum([chunk.length for chunk in chunks])
    rows = np.array([end - 1 for chunk, end in zip(chunks, ends, strict=True) if chunk.embeds], dtype=np.int64)
    if not len(rows):
        return None
    return HiddenRows(to_device(rows, device), torch.empty(len(rows), dim, dtype=torch.float32, device=device))


def copy_states(chunks: tuple[Chunk, ...], hidden: HiddenRows | None) -> PendingEmbeddings | None:
    """Queue the copy of the computed hidden states to the host."""
    if hidden is None:
        return None
    return PendingEmbeddings([chunk for chunk in chunks if chunk.embeds], HostArray(hidden.states))


def finish_embeddings(pending: PendingEmbeddings | None) -> tuple[dict[int, bytes], list[int]]:
    """Wait for the hidden states; return the embeddings by request, and the requests whose state is not finite."""
    if pending is None:
        return {}, []
    states = pending.states.wait()
    embeddings: dict[int, bytes] = {}
    failed: list[int] = []
    for chunk, state in zip(pending.chunks, states, strict=True):
        request = chunk.sequence.request
        if np.isfinite(state).all():
            embeddings[request.request_id] = unit_vector(state[: request.embedding_len]).tobytes()
        else:
            failed.append(request.request_id)
    return embeddings, failed


def unit_vector(state: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the vector scaled to length 1, little-endian float32: [3, 4] -> [0.6, 0.8]."""
    values = state.astype(np.float64)
    length = max(float(np.sqrt(np.square(values).sum())), SMALLEST_LENGTH)
    return np.asarray(values / length, dtype="<f4")
