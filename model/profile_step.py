"""Run the largest possible steps, to measure the memory that the KV pool must leave free for intermediate results."""

from collections.abc import Callable
from dataclasses import replace

import torch

from model.forward_batch import ForwardBatch, Routing
from model.kv_format import KvDtype
from model.kv_pool import KvPool
from model.mixtral import Mixtral
from model.sampling_batch import FloatParam, IntParam, SamplingRows

MOST_LOGPROBS = 20  # of a row, as in the APIs


def run_profile_steps(
    model: Mixtral,
    num_rows: int,
    num_logits: int,
    block_size: int,
    kv_dtype: KvDtype,
    new_pool: Callable[[int], KvPool] | None = None,
) -> None:
    """Compute the two largest steps, and drop their results.

    Both compute one prompt of `num_rows` tokens. In the first every row uses all experts and has a mask, and the last
    `num_logits` rows are sampled; in the second every row has logits and scores a token (prompt_logprobs). The steps
    use a KV pool of their own that is just large enough; it is freed on return. `new_pool` creates it with a number of
    blocks, if other ranks need one too.
    """
    device, num_blocks = model.weights.embedding.device, -(-num_rows // block_size) + 1
    if new_pool is None:
        pool = KvPool(model.group.cut.with_own_heads(model.config), num_blocks, block_size, kv_dtype, device)
    else:
        pool = new_pool(num_blocks)
    for count, is_routed, target in ((num_logits, True, -1), (num_rows, False, 0)):
        batch = _prompt(num_rows, count, block_size, model.config.vocab_size, device)
        routing = _all_experts(model, num_rows) if is_routed and model.config.num_experts else None
        finite = torch.ones(num_rows, dtype=torch.bool, device=device)
        logits = model.forward(replace(batch, routing=routing, finite=finite), pool)
        model.ops.sample(logits, sampling_rows(len(logits), target, device))


def _prompt(num_rows: int, num_logits: int, block_size: int, vocab_size: int, device: torch.device) -> ForwardBatch:
    """Build one prompt; block 0 is the null block."""
    positions = torch.arange(num_rows, device=device)
    num_blocks = -(-num_rows // block_size)
    return ForwardBatch(
        token_ids=positions % vocab_size,
        positions=positions,
        slot_mapping=positions + block_size,
        query_start=torch.tensor([0, num_rows], dtype=torch.int32, device=device),
        context_len=torch.tensor([num_rows], dtype=torch.int32, device=device),
        block_tables=torch.arange(1, num_blocks + 1, dtype=torch.int32, device=device)[None],
        logit_rows=positions[-num_logits:],
    )


def _all_experts(model: Mixtral, num_rows: int) -> Routing:
    count, device = model.config.num_experts, model.weights.embedding.device
    ids = torch.empty(model.config.num_layers, num_rows, count, dtype=torch.int32, device=device)
    masks = torch.ones(1, model.config.num_layers, count, dtype=torch.bool, device=device)
    mask_rows = torch.zeros(num_rows, dtype=torch.int64, device=device)
    return Routing(torch.full((num_rows,), count, dtype=torch.int32, device=device), masks, mask_rows, ids)


def sampling_rows(num_rows: int, target: int, device: torch.device) -> SamplingRows:
    """Sample every row with top_p and penalties, or score token `target`."""
    float_params = torch.ones(num_rows, len(FloatParam), device=device)
    float_params[:, FloatParam.TOP_P], float_params[:, FloatParam.MIN_P] = 0.9, 0.0
    int_params = torch.zeros(num_rows, len(IntParam), dtype=torch.int64, device=device)
    int_params[:, IntParam.TARGET], int_params[:, IntParam.MASK_ROW] = target, -1
    nothing = torch.empty(0, dtype=torch.int32, device=device), torch.empty(0, device=device)
    history = torch.zeros(1, 2, dtype=torch.int32, device=device)
    return SamplingRows(float_params, int_params, history, *nothing, None, MOST_LOGPROBS, False, True)
