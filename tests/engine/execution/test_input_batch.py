"""A kept decode batch equals the batch that would be built from scratch."""

import random
from dataclasses import fields

import numpy as np
import pytest
import torch

from engine.execution.input_batch import BatchBuilder, build_batch
from engine.execution.persistent_batch import PersistentBatch
from engine.scheduling.blocks.geometry import BlockGeometry
from engine.scheduling.blocks.manager import BlockManager
from engine.scheduling.blocks.pool import BlockPool
from engine.scheduling.expert_usage import ExpertUsage
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence import Sequence, Status
from engine.scheduling.step_plan import Chunk, Sampled, StepPlan, StepResult
from engine.types import Request, SamplingParams
from model.config import ModelConfig
from model.forward_batch import ForwardBatch
from tests.support.kernels.attention_cases import Heads

CONFIG: ModelConfig = Heads().config
BLOCK_SIZE, MAX_LEN, NUM_REQUESTS = 4, 60, 6


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("num_blocks", [90, 24], ids=["room for all", "preemptions"])
def test_a_kept_batch_equals_one_built_from_scratch(num_blocks: int, window: int | None) -> None:
    """Requests arrive, end, cross blocks, leave the window and are preempted; the batches are always equal."""
    rng = random.Random(num_blocks)
    block_manager = BlockManager(BlockPool(num_blocks), BlockGeometry(BLOCK_SIZE, window, 16), prefix_caching=False)
    scheduler = Scheduler(
        block_manager, max_num_seqs=NUM_REQUESTS, max_num_batched_tokens=16, max_model_len=MAX_LEN, eos_token_ids=[2]
    )
    rows = PersistentBatch(NUM_REQUESTS, MAX_LEN, BLOCK_SIZE, 32, torch.device("cpu"))
    builder = BatchBuilder(rows, CONFIG)
    num_added = num_kept = num_preemptions = 0
    last_rows = np.zeros(0, dtype=np.int64)
    last: ForwardBatch | None = None
    while num_added < 40 or scheduler.has_work():
        if num_added < 40 and rng.random() < 0.2:
            params = SamplingParams(max_tokens=rng.randint(1, 30), ignore_eos=True)
            scheduler.add(Request(num_added, [rng.randrange(3, 32) for _ in range(rng.randint(1, 20))], params))
            num_added += 1
        plan = scheduler.plan(0.0)
        if not plan.chunks:
            continue
        ours = builder.build(plan)
        num_kept += ours.forward is last
        assert (ours.forward is last) == (ours.logits.rows is last_rows), "a decode step has a batch of its own"
        last, last_rows = ours.forward, ours.logits.rows
        num_preemptions += plan.num_preemptions
        _assert_same(ours.forward, _built_from_scratch(plan, rows))
        rows.tokens[last_rows, ours.logits.positions + 1] = 5  # as the sampling kernel does
        results = {chunk.sequence.request_id: Sampled(5) for chunk in plan.chunks if chunk.samples}
        scheduler.apply(plan, StepResult(dict(results)), 0.0)
    assert num_kept > 50
    assert (num_preemptions > 0) == (num_blocks == 24 and window is None)


def _built_from_scratch(plan: StepPlan, rows: PersistentBatch) -> ForwardBatch:
    """Build the batch from the sequences' own state."""
    chunks = plan.chunks
    starts = np.array([chunk.start for chunk in chunks])
    lengths = np.array([chunk.length for chunk in chunks])
    built = build_batch(
        chunks, rows.update([chunk.sequence for chunk in chunks]), starts, lengths, rows, CONFIG
    ).forward
    ids = [chunk.sequence.token_ids[chunk.start : chunk.start + chunk.length] for chunk in chunks]
    assert built.token_ids.tolist() == [token for chunk_ids in ids for token in chunk_ids]
    for table, chunk in zip(built.block_tables.tolist(), chunks, strict=True):
        assert table == chunk.sequence.block_table + [0] * (len(table) - len(chunk.sequence.block_table))
    return built


def _assert_same(ours: ForwardBatch, theirs: ForwardBatch) -> None:
    for field in fields(ForwardBatch):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        assert (mine is None) == (other is None)
        if mine is not None:
            assert mine.dtype == other.dtype, field.name
            assert torch.equal(mine, other), field.name


def test_gate_rows_are_kept_until_other_positions_are_reported() -> None:
    """Gate logits are reported from the first generated token on: not of a prompt's last token, which decodes first."""

    def step(length: int) -> ForwardBatch:
        built = builder.build(StepPlan(tuple(Chunk(s, length - 1, 1, True, False) for s in running))).forward
        for sequence in running:
            sequence.token_ids.append(5)
        return built

    running = [
        Sequence(Request(index, [3, 4], SamplingParams(), expert_routing=True, gate_logits=index == 1), (0, index), 9)
        for index in range(2)
    ]
    for sequence in running:
        sequence.status, sequence.block_table = Status.RUNNING, [1, 2]
        sequence.experts = ExpertUsage(sequence.request, CONFIG.num_experts)
    builder = BatchBuilder(PersistentBatch(2, MAX_LEN, BLOCK_SIZE, 32, torch.device("cpu")), CONFIG)
    prompt, first, second = step(2), step(3), step(4)
    assert prompt.gates is None and second is first
    assert first.gates is not None and first.gates.rows.tolist() == [1]
    assert first.gates.logits.shape == (CONFIG.num_layers, 1, CONFIG.num_experts)
