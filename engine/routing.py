"""What the requests of a step ask of the gates, as the network reads it: k per row, masks, and room for the answers.

Letters: T rows of the step, L layers, E experts, M masks.
"""

from collections.abc import Sequence as SequenceOf

import torch

from engine.plan import Chunk
from model.config import ModelConfig
from model.forward_batch import Routing


def build_routing(chunks: SequenceOf[Chunk], model: ModelConfig, device: torch.device) -> Routing | None:
    """None for a network without experts."""
    if not model.num_experts:
        return None
    requests = [chunk.sequence.request for chunk in chunks]
    lengths = torch.tensor([chunk.length for chunk in chunks])
    k_of_chunk = [request.experts_per_token or model.experts_per_token for request in requests]
    k_of_row = torch.tensor(k_of_chunk, dtype=torch.int32).repeat_interleave(lengths)  # [T]
    chosen = torch.empty(model.num_layers, len(k_of_row), max(k_of_chunk), dtype=torch.int32, device=device)
    masks, mask_rows = _masks([request.expert_mask for request in requests], lengths, model)
    return Routing(
        experts_per_token=k_of_row.to(device),
        masks=None if masks is None else masks.to(device),
        mask_rows=None if mask_rows is None else mask_rows.to(device),
        chosen=chosen,
    )


def _masks(
    masks: list[list[list[bool]] | None], lengths: torch.Tensor, model: ModelConfig
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """[M, L, E] and [T], where any chunk has a mask; mask 0, all on, is that of the chunks that have none."""
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None, None
    all_on = torch.ones(1, model.num_layers, model.num_experts, dtype=torch.bool)
    counter = iter(range(1, len(given) + 1))
    row_of_chunk = torch.tensor([0 if mask is None else next(counter) for mask in masks])
    return torch.cat((all_on, torch.tensor(given, dtype=torch.bool))), row_of_chunk.repeat_interleave(lengths)
