"""Run the network as an engine does: several sequences, chunks, one shuffled pool of blocks."""

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from model.forward_batch import ForwardBatch
from model.kv_pool import KvPool
from model.mixtral import Mixtral

CPU = torch.device("cpu")


@dataclass
class Running:
    """Sequence whose tokens are all known (teacher forcing), and the number of its computed positions."""

    token_ids: list[int]
    table: list[int]
    num_computed: int = 0
    num_freed: int = 0  # blocks in front of the window
    logits: list[Tensor] = field(default_factory=list)


def make_batch(parts: list[tuple[Running, int]], block_size: int) -> ForwardBatch:
    """Build a batch of the next `length` tokens of each sequence, with logits of every row."""
    positions = [list(range(run.num_computed, run.num_computed + length)) for run, length in parts]
    slots = [
        run.table[p // block_size] * block_size + p % block_size
        for (run, _), of_run in zip(parts, positions, strict=True)
        for p in of_run
    ]
    width = max(len(run.table) for run, _ in parts)
    starts = list(accumulate((length for _, length in parts), initial=0))
    return ForwardBatch(
        token_ids=torch.tensor([run.token_ids[p] for (run, _), of in zip(parts, positions, strict=True) for p in of]),
        positions=torch.tensor([p for of_run in positions for p in of_run]),
        slot_mapping=torch.tensor(slots),
        query_start=torch.tensor(starts, dtype=torch.int32),
        context_len=torch.tensor([run.num_computed + length for run, length in parts], dtype=torch.int32),
        block_tables=torch.tensor([run.table + [0] * (width - len(run.table)) for run, _ in parts], dtype=torch.int32),
        logit_rows=torch.arange(starts[-1]),
    )


def teacher_forced(
    model: Mixtral, sequences: list[list[int]], chunks: list[int], block_size: int = 4, seed: int = 0
) -> list[Tensor]:
    """Return logits of every position, [length, V] per sequence; sequence i advances by chunks[i] tokens per step.

    Blocks come shuffled from one pool that starts as NaN, the null block included, so that reads of wrong slots show.
    Blocks in front of the window are set back to NaN and replaced by the null block.
    """
    sizes = [-(-len(ids) // block_size) for ids in sequences]
    pool = KvPool(model.config, sum(sizes) + 1, block_size, "float32", torch.get_default_device())
    pool.k.fill_(float("nan"))
    pool.v.fill_(float("nan"))
    ids = (
        torch.randperm(sum(sizes), generator=torch.Generator(torch.get_default_device()).manual_seed(seed)) + 1
    ).tolist()
    runs = [Running(tokens, [ids.pop() for _ in range(size)]) for tokens, size in zip(sequences, sizes, strict=True)]
    while any(run.num_computed < len(run.token_ids) for run in runs):
        parts = [
            (run, min(chunk, len(run.token_ids) - run.num_computed))
            for run, chunk in zip(runs, chunks, strict=True)
            if run.num_computed < len(run.token_ids)
        ]
        logits = model.forward(make_batch(parts, block_size), pool)
        for (run, length), rows in zip(parts, logits.split_with_sizes([length for _, length in parts]), strict=True):
            run.logits.append(rows)
            run.num_computed += length
            _slide(run, model.config.window, pool)
    return [torch.cat(run.logits) for run in runs]


def _slide(run: Running, window: int | None, pool: KvPool) -> None:
    """Free the blocks that no later position sees: those entirely in front of num_computed - window + 1."""
    if window is None:
        return
    end = max(0, run.num_computed - window + 1) // pool.block_size
    for index in range(run.num_freed, end):
        pool.k[:, run.table[index]] = float("nan")
        run.table[index] = 0
    run.num_freed = end
