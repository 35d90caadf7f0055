"""Captured decode steps give the logits, experts and KV blocks of plain steps, with any padding."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.dummy_weights import random_model
from model.forward_batch import ForwardBatch
from model.kv_pool import KvPool
from model.mixtral import Mixtral, uniform_routing
from model.mixtral_cuda_graphs import EagerRecorder, GraphedMixtral
from model.ops.reference.ops import ReferenceOps
from tests.support.native_cases import Heads
from tests.support.paged import CPU, Running, make_batch

BLOCK_SIZE, NUM_BLOCKS = 4, 120
CONFIG = replace(Heads(4, 2, 16).config, num_layers=2, num_experts=4, experts_per_token=2)


class CountingRecorder(EagerRecorder):
    """Recorder that counts captures and replays."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.num_replayed = 0

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        self.num_recorded += 1
        result, replay = super().record(work)

        def counted() -> None:
            self.num_replayed += 1
            replay()

        return result, counted


@pytest.fixture
def model() -> Mixtral:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return random_model(CONFIG, torch.float32, CPU, ReferenceOps(), seed=1)


def _pools() -> tuple[KvPool, KvPool]:
    ours, plain = (KvPool(CONFIG, NUM_BLOCKS, BLOCK_SIZE, "float32", CPU) for _ in range(2))
    for pool in (ours, plain):
        generator = torch.Generator().manual_seed(3)
        pool.k.normal_(generator=generator)
        pool.v.normal_(generator=generator)
    return ours, plain


def _decode(num_sequences: int, length: int) -> ForwardBatch:
    """Build a decode batch of random tokens with lengths from `length` on, in random blocks."""
    parts = []
    blocks = iter((torch.randperm(NUM_BLOCKS - 1) + 1).tolist())
    for index in range(num_sequences):
        tokens = torch.randint(32, (length + index % 3,)).tolist()
        table = [next(blocks) for _ in range(-(-len(tokens) // BLOCK_SIZE))]
        parts.append((Running(tokens, table, len(tokens) - 1), 1))
    return make_batch(parts, BLOCK_SIZE)


def _routed(batch: ForwardBatch, k: list[int]) -> ForwardBatch:
    routing = uniform_routing(CONFIG, len(k), CPU)
    expert_ids = torch.full((2, len(k), max(k)), -7, dtype=torch.int32)
    return replace(
        batch, routing=replace(routing, experts_per_token=torch.tensor(k, dtype=torch.int32), expert_ids=expert_ids)
    )


def test_captured_steps_give_the_results_of_plain_steps(model: Mixtral) -> None:
    """Few rows follow many, and short tables follow long ones, so that leftovers of earlier steps would show."""
    recorder, (ours, plain) = CountingRecorder(), _pools()
    graphed = GraphedMixtral(model, ours, recorder)
    for num_sequences, length in ((8, 20), (5, 9), (3, 31), (7, 12), (1, 1), (3, 2), (5, 25)):
        k = torch.randint(1, 5, (num_sequences,)).tolist()
        batch = _decode(num_sequences, length)
        mine, theirs = _routed(batch, k), _routed(batch, k)
        logits, expected = graphed.forward(mine, ours), model.forward(theirs, plain)
        assert torch.allclose(logits, expected, atol=1e-5)
        assert mine.routing is not None and theirs.routing is not None
        assert torch.equal(mine.routing.expert_ids, theirs.routing.expert_ids)
        assert torch.allclose(ours.k[:, 1:], plain.k[:, 1:], atol=1e-5)  # padding is written to the null block
        assert torch.allclose(ours.v[:, 1:], plain.v[:, 1:], atol=1e-5)
    assert recorder.num_replayed == 7


def test_a_shape_is_captured_once_and_shapes_of_one_bucket_share_it(model: Mixtral) -> None:
    recorder, (ours, _) = CountingRecorder(), _pools()
    graphed = GraphedMixtral(model, ours, recorder)
    for num_sequences in (5, 6, 8, 7, 5):
        graphed.forward(_decode(num_sequences, 20), ours)
    assert (recorder.num_recorded, recorder.num_replayed) == (1, 5)
    graphed.forward(_decode(4, 20), ours)
    graphed.forward(_decode(5, 40), ours)  # 11 blocks: a wider table
    assert recorder.num_recorded == 3


def test_logits_are_those_of_the_logit_rows_in_their_order(model: Mixtral) -> None:
    ours, plain = _pools()
    graphed = GraphedMixtral(model, ours, EagerRecorder())
    batch = replace(_decode(5, 9), logit_rows=torch.tensor([4, 0, 2]))
    assert torch.allclose(graphed.forward(batch, ours), model.forward(batch, plain), atol=1e-5)


def test_prompts_masked_experts_large_batches_and_other_pools_run_without_a_graph(model: Mixtral) -> None:
    recorder, (ours, other) = CountingRecorder(), _pools()
    graphed = GraphedMixtral(model, ours, recorder)
    decode = _decode(3, 9)
    masked = replace(
        uniform_routing(CONFIG, 3, CPU),
        masks=torch.ones(1, 2, 4, dtype=torch.bool),
        mask_rows=torch.zeros(3, dtype=torch.int64),
    )
    prompt = make_batch([(Running([1, 2, 3], [1]), 3), (Running([4], [2]), 1)], BLOCK_SIZE)
    large = make_batch([(Running([1], [1]), 1)] * 257, BLOCK_SIZE)
    for batch, pool in ((prompt, ours), (replace(decode, routing=masked), ours), (large, ours), (decode, other)):
        assert graphed.forward(batch, pool).isfinite().all()
    assert recorder.num_recorded == 0
