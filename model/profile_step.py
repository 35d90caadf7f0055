"""Run the largest possible step, to measure the memory that the KV pool must leave free for intermediate results."""

import torch

from model.forward_batch import ForwardBatch
from model.kv_format import KvDtype
from model.kv_pool import KvPool
from model.mixtral import Mixtral


def run_profile_step(model: Mixtral, num_rows: int, num_logits: int, block_size: int, kv_dtype: KvDtype) -> None:
    """Compute one prompt of `num_rows` tokens and the logits of its last `num_logits` rows, and drop the result.

    The step uses a KV pool of its own that is just large enough; it is freed on return.
    """
    device = model.weights.embedding.device
    num_blocks = -(-num_rows // block_size)
    pool = KvPool(model.config, num_blocks + 1, block_size, kv_dtype, device)
    positions = torch.arange(num_rows, device=device)
    batch = ForwardBatch(
        token_ids=positions % model.config.vocab_size,
        positions=positions,
        slot_mapping=positions + block_size,  # block 0 is the null block
        query_start=torch.tensor([0, num_rows], dtype=torch.int32, device=device),
        context_len=torch.tensor([num_rows], dtype=torch.int32, device=device),
        block_tables=torch.arange(1, num_blocks + 1, dtype=torch.int32, device=device)[None],
        logit_rows=positions[-num_logits:],
    )
    model.forward(batch, pool)
