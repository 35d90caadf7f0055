"""Input of steps with drafts on a CPU, in which each request decodes: all numbers are known to the host.

In loops over lists: the network leaves nothing of numpy in the caches, so that the first call of each of its functions
takes 5 to 40 us, and build_batch() needs some thirty of them. Letters: T rows of the step, S sequences.
"""

from array import array
from itertools import accumulate

import torch
from torch import Tensor

from engine.execution.adapters import AdapterStore
from engine.execution.decode_batch import InputBatch, LogitRows
from engine.execution.draft_rows import draft_rows
from engine.execution.experts.gate_logits import gate_rows
from engine.execution.experts.routing import Routed, build_routing
from engine.execution.persistent_batch import Int64s, PersistentBatch
from engine.scheduling.step_plan import Chunk
from model.config import ModelConfig
from model.forward_batch import ForwardBatch

INT64, INT32 = "q", "i"  # codes of array.array
DTYPES = {INT64: torch.int64, INT32: torch.int32}


def is_decode_step(chunks: tuple[Chunk, ...]) -> bool:
    """Return whether each chunk is the last known token of a request, and its draft if it has one."""
    return all(chunk.samples and chunk.length == 1 + len(chunk.draft) for chunk in chunks)


def build_draft_batch(
    chunks: tuple[Chunk, ...], rows: Int64s, requests: PersistentBatch, model: ModelConfig, adapters: AdapterStore
) -> InputBatch:
    """Build the input of a decode step with drafts, as build_batch() does. PersistentBatch.write_drafts() has written
    them. `rows`: of the chunks in the persistent batch, [S]."""
    token_ids, positions, slots = list[int](), list[int](), list[int]()  # of T rows
    owners, owner_rows = [], list[int]()  # likewise
    for chunk, row in zip(chunks, rows.tolist(), strict=True):
        token_ids += requests.host_tokens_of(row, chunk.start, chunk.length)
        positions += range(chunk.start, chunk.start + chunk.length)
        slots += chunk.sequence.slots(chunk.start, chunk.length, requests.block_size)
        owners += [chunk.sequence] * chunk.length
        owner_rows += [row] * chunk.length
    lengths = [chunk.length for chunk in chunks]
    row_positions = _tensor(positions, INT64)
    forward = ForwardBatch(
        token_ids=_tensor(token_ids, INT64),
        positions=row_positions,
        slot_mapping=_tensor(slots, INT64),
        query_start=_tensor(list(accumulate(lengths, initial=0)), INT32),
        context_len=_tensor([chunk.start + chunk.length for chunk in chunks], INT32),
        block_tables=requests.tables_of(rows)[1],
        logit_rows=torch.arange(len(positions)),
        routing=build_routing(chunks, model, requests.device),
        adapters=adapters.rows_of(chunks, requests.device),
        gates=gate_rows(chunks, model, requests.device),
    )
    logits = LogitRows(
        owners, _tensor(owner_rows, INT64).numpy(), row_positions.numpy(), len(positions), draft_rows(chunks)
    )
    return InputBatch(
        forward,
        logits,
        Routed.of(forward),
        has_prompt_rows=False,
        reports_experts=any(chunk.sequence.experts for chunk in chunks),
        is_overwritten=False,
    )


def _tensor(numbers: list[int], code: str) -> Tensor:
    return torch.frombuffer(array(code, numbers), dtype=DTYPES[code])
