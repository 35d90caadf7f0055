"""Expert options of a step's requests as tensors for the gates, and the expert ids that the gates chose.

Letters: T rows of the step, L layers, E experts, M masks, C chunks.
"""

from collections.abc import Sequence as SequenceOf
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.execution.device_transfer import Array, HostLists, to_device
from engine.scheduling.step_plan import Chunk
from engine.types import ExpertChoices
from model.config import ModelConfig
from model.forward_batch import ForwardBatch, Routing

Number = TypeVar("Number", np.int32, np.int64)


class Routed(NamedTuple):
    """Tokens of a step's rows [T], and the experts that compute them [L, T, K]. On a CPU arrays in the memory of the
    step's tensors: numpy's calls cost a step less than torch's."""

    token_ids: Tensor | Array
    expert_ids: Tensor | Array

    @classmethod
    def of(cls, batch: ForwardBatch) -> "Routed | None":
        """Return those of a batch; None for a network without experts."""
        if batch.routing is None:
            return None
        token_ids, expert_ids = batch.token_ids, batch.routing.expert_ids
        return cls(token_ids.numpy(), expert_ids.numpy()) if token_ids.is_cpu else cls(token_ids, expert_ids)


def build_routing(chunks: SequenceOf[Chunk], model: ModelConfig, device: torch.device) -> Routing | None:
    """Build the routing tensors of the chunks' rows; None for a network without experts."""
    if not model.num_experts:
        return None
    requests = [chunk.sequence.request for chunk in chunks]
    lengths = [chunk.length for chunk in chunks]
    chunk_k = [request.experts_per_token or model.experts_per_token for request in requests]
    masks, mask_rows = _masks([request.expert_mask for request in requests], lengths, model)
    return Routing(
        experts_per_token=to_device(_repeat_rows(chunk_k, lengths, np.int32), device),
        masks=None if masks is None else to_device(masks, device),
        mask_rows=None if mask_rows is None else to_device(mask_rows, device),
        expert_ids=torch.empty(model.num_layers, sum(lengths), max(chunk_k), dtype=torch.int32, device=device),
    )


def _repeat_rows(values: list[int], lengths: list[int], dtype: type[Number]) -> NDArray[Number]:
    """Repeat the value of each chunk for its rows, [C] -> [T]: (2, 1) and lengths (1, 3) -> 2, 1, 1, 1."""
    return np.repeat(np.array(values, dtype=dtype), lengths)


def copy_expert_ids(chunks: SequenceOf[Chunk], routing: Routing | None) -> HostLists | None:
    """Queue the copy of the step's expert ids to the host, if a request reports experts."""
    if routing is None or not any(chunk.sequence.experts for chunk in chunks):
        return None
    return HostLists([routing.expert_ids])


def expert_choices(chunks: SequenceOf[Chunk], expert_ids: HostLists | None) -> dict[int, ExpertChoices]:
    """Wait for the copy; return the expert ids of the chunks' rows by request id, for the requests that report them."""
    found: dict[int, ExpertChoices] = {}
    if expert_ids is None:
        return found
    [layers] = expert_ids.wait()
    first = 0
    for chunk in chunks:
        request = chunk.sequence.request
        if chunk.sequence.experts:
            found[request.request_id] = [
                [ids[: request.experts_per_token] for ids in rows[first : first + chunk.length]] for rows in layers
            ]
        first += chunk.length
    return found


def _masks(
    masks: list[list[list[bool]] | None], lengths: list[int], model: ModelConfig
) -> tuple[NDArray[np.bool_] | None, NDArray[np.int64] | None]:
    """Return the masks [M, L, E] and each row's mask index [T], or None and None if no chunk has a mask. Mask 0 enables
    all experts, for the chunks without a mask."""
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None, None
    all_on = np.ones((1, model.num_layers, model.num_experts), dtype=np.bool_)
    indices = iter(range(1, len(given) + 1))
    chunk_masks = [0 if mask is None else next(indices) for mask in masks]
    return np.concatenate((all_on, np.array(given, dtype=np.bool_))), _repeat_rows(chunk_masks, lengths, np.int64)
