"""What the requests of a step ask of the gates, as the network reads it, and what the gates answered.

Letters: T rows of the step, L layers, E experts, M masks.
"""

from collections.abc import Sequence as SequenceOf
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from engine.execution.device_transfer import to_device
from engine.scheduling.step_plan import Chunk
from engine.types import ExpertChoices
from model.config import ModelConfig
from model.forward_batch import Routing

Number = TypeVar("Number", np.int32, np.int64)


def build_routing(chunks: SequenceOf[Chunk], model: ModelConfig, device: torch.device) -> Routing | None:
    """None for a network without experts."""
    if not model.num_experts:
        return None
    requests = [chunk.sequence.request for chunk in chunks]
    lengths = [chunk.length for chunk in chunks]
    k_of_chunk = [request.experts_per_token or model.experts_per_token for request in requests]
    masks, mask_rows = _masks([request.expert_mask for request in requests], lengths, model)
    return Routing(
        experts_per_token=to_device(_repeated(k_of_chunk, lengths, np.int32), device),
        masks=None if masks is None else to_device(masks, device),
        mask_rows=None if mask_rows is None else to_device(mask_rows, device),
        expert_ids=torch.empty(model.num_layers, sum(lengths), max(k_of_chunk), dtype=torch.int32, device=device),
    )


def _repeated(of_chunk: list[int], lengths: list[int], dtype: type[Number]) -> NDArray[Number]:
    """(2, 1), lengths (1, 3) -> 2, 1, 1, 1."""
    return np.repeat(np.array(of_chunk, dtype=dtype), lengths)


def expert_choices(chunks: SequenceOf[Chunk], routing: Routing | None) -> dict[int, ExpertChoices]:
    """What the chunks' rows took, by request id, of those requests that want to know."""
    found: dict[int, ExpertChoices] = {}
    if routing is None or not any(chunk.sequence.experts for chunk in chunks):
        return found
    first = 0
    for chunk in chunks:
        request = chunk.sequence.request
        if chunk.sequence.experts:
            expert_ids = routing.expert_ids[:, first : first + chunk.length, : request.experts_per_token]
            found[request.request_id] = expert_ids.tolist()
        first += chunk.length
    return found


def _masks(
    masks: list[list[list[bool]] | None], lengths: list[int], model: ModelConfig
) -> tuple[NDArray[np.bool_] | None, NDArray[np.int64] | None]:
    """[M, L, E] and [T], where any chunk has a mask; mask 0, all on, is that of the chunks that have none."""
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None, None
    all_on = np.ones((1, model.num_layers, model.num_experts), dtype=np.bool_)
    numbers = iter(range(1, len(given) + 1))
    mask_of_chunk = [0 if mask is None else next(numbers) for mask in masks]
    return np.concatenate((all_on, np.array(given, dtype=np.bool_))), _repeated(mask_of_chunk, lengths, np.int64)
