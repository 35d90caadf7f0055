"""Captured decode steps give the logits, experts and KV blocks of plain steps, with any padding; failed captures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from model.dummy_weights import random_model
from model.forward_batch import ForwardBatch, GateRows
from model.kv_pool import KvPool
from model.mixtral import Mixtral, uniform_routing
from model.mixtral_cuda_graphs import (
    ROW_BUCKETS,
    CaptureError,
    CudaRecorder,
    EagerRecorder,
    GraphedMixtral,
    GraphRecorder,
    buckets_for,
)
from model.ops.reference.ops import ReferenceOps
from tests.support.kernels.attention_cases import Heads
from tests.support.kernels.paged import CPU, Running, make_batch

BLOCK_SIZE, NUM_BLOCKS, TABLE_WIDTH = 4, 120, 20
CONFIG = replace(Heads(4, 2, 16).config, num_layers=2, num_experts=4, experts_per_token=2)


class CountingRecorder(EagerRecorder):
    """Recorder that counts captures and replays. A capture raises if its number, from 1 on, is in `failing`."""

    def __init__(self, failing: tuple[int, ...] = ()) -> None:
        self.num_recorded = 0
        self.num_replayed = 0
        self._failing = failing

    def record(self, work: Callable[[], object]) -> Callable[[], object]:
        self.num_recorded += 1
        if self.num_recorded in self._failing:
            raise CaptureError("RuntimeError: out of memory\nwhile capturing")

        def counted() -> None:
            self.num_replayed += 1
            work()

        return counted


@pytest.fixture
def model() -> Mixtral:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return random_model(CONFIG, torch.float32, CPU, ReferenceOps(), seed=1)


def _graphed(model: Mixtral, pool: KvPool, recorder: GraphRecorder, max_rows: int = 8) -> GraphedMixtral:
    graphed = GraphedMixtral(model, pool, recorder, max_rows, TABLE_WIDTH)
    graphed.capture_all()
    return graphed


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


def _assert_equal_steps(graphed: GraphedMixtral, model: Mixtral, batch: ForwardBatch, k: list[int]) -> None:
    """Compute a step on both networks, with the same K and V in both pools, and compare all that they write."""
    ours, plain = _pools()
    graphed._kv_pool.k.copy_(ours.k)
    graphed._kv_pool.v.copy_(ours.v)
    mine, theirs = _routed(batch, k), _routed(batch, k)
    logits, expected = graphed.forward(mine, graphed._kv_pool), model.forward(theirs, plain)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert mine.routing is not None and theirs.routing is not None
    assert torch.equal(mine.routing.expert_ids, theirs.routing.expert_ids)
    assert torch.allclose(graphed._kv_pool.k[:, 1:], plain.k[:, 1:], atol=1e-5)  # padding goes to the null block
    assert torch.allclose(graphed._kv_pool.v[:, 1:], plain.v[:, 1:], atol=1e-5)


def test_captured_steps_give_the_results_of_plain_steps(model: Mixtral) -> None:
    """Few rows follow many, and short tables follow long ones, so that leftovers of earlier steps would show."""
    recorder = CountingRecorder()
    graphed = _graphed(model, _pools()[0], recorder)
    for num_sequences, length in ((8, 20), (5, 9), (3, 31), (7, 12), (1, 1), (3, 2), (5, 25)):
        k = torch.randint(1, 3, (num_sequences,)).tolist()
        _assert_equal_steps(graphed, model, _decode(num_sequences, length), k)
    assert recorder.num_replayed == 7


def test_every_bucket_is_captured_once_at_load_largest_first(model: Mixtral) -> None:
    recorder, progress, beats = CountingRecorder(), list[tuple[int, int]](), list[int]()
    model.on_layer = lambda: beats.append(1)
    graphed = GraphedMixtral(model, _pools()[0], recorder, 5, TABLE_WIDTH)
    graphed.capture_all(lambda done, total: progress.append((done, total)))
    assert progress == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(beats) == 4  # after each capture
    assert list(graphed._captured) == [8, 4, 2, 1]
    for num_sequences in (5, 6, 8, 1, 5):
        graphed.forward(_decode(num_sequences, 20), graphed._kv_pool)
    assert (recorder.num_recorded, recorder.num_replayed) == (4, 5)
    assert len(beats) == 4 + 5 * 3  # two layers, and each replay: the watchdog sees progress


def test_there_are_at_most_16_buckets_and_they_end_at_the_first_that_holds_all_rows() -> None:
    assert len(ROW_BUCKETS) <= 16 and ROW_BUCKETS[-1] == 256
    assert buckets_for(1) == (1,) and buckets_for(10) == (1, 2, 4, 8, 16)
    assert buckets_for(256) == buckets_for(1000) == ROW_BUCKETS


def test_a_failed_capture_runs_its_bucket_without_a_graph_and_is_not_tried_again(
    model: Mixtral, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = CountingRecorder(failing=(1, 3))  # 8 rows and 2 rows
    graphed = _graphed(model, _pools()[0], recorder)
    for num_sequences in (8, 7, 4, 2, 1):
        _assert_equal_steps(graphed, model, _decode(num_sequences, 9), [2] * num_sequences)
    assert (recorder.num_recorded, recorder.num_replayed) == (4, 2)
    messages = [record.message for record in caplog.records]
    assert len(messages) == 2 and all("out of memory" in text and "\n" not in text for text in messages)


def test_logits_are_those_of_the_logit_rows_in_their_order(model: Mixtral) -> None:
    ours, plain = _pools()
    graphed = _graphed(model, ours, CountingRecorder())
    batch = replace(_decode(5, 9), logit_rows=torch.tensor([4, 0, 2]))
    assert torch.allclose(graphed.forward(batch, ours), model.forward(batch, plain), atol=1e-5)


def test_steps_that_no_graph_represents_run_without_one(model: Mixtral) -> None:
    """Prompts, masked experts, more experts than the model's own, gates, wide tables, many rows, other pools."""
    recorder, (ours, other) = CountingRecorder(), _pools()
    graphed = _graphed(model, ours, recorder)
    decode = _decode(3, 9)
    masked = replace(
        uniform_routing(CONFIG, 3, CPU),
        masks=torch.ones(1, 2, 4, dtype=torch.bool),
        mask_rows=torch.zeros(3, dtype=torch.int64),
    )
    prompt = make_batch([(Running([1, 2, 3], [1]), 3), (Running([4], [2]), 1)], BLOCK_SIZE)
    steps = [
        (prompt, ours),
        (replace(decode, routing=masked), ours),
        (_routed(decode, [2, 3, 1]), ours),
        (replace(decode, finite=torch.ones(3, dtype=torch.bool)), ours),
        (replace(decode, gates=GateRows(torch.tensor([1]), torch.zeros(2, 1, 4))), ours),
        (_decode(1, 4 * TABLE_WIDTH + 1), ours),
        (make_batch([(Running([1], [1]), 1)] * 9, BLOCK_SIZE), ours),
        (decode, other),
    ]
    for batch, pool in steps:
        assert graphed.forward(batch, pool).isfinite().all()
    assert recorder.num_replayed == 0
    graphed.forward(decode, ours)
    assert recorder.num_replayed == 1


class FakeCuda:
    """torch.cuda's streams and captures, without a device. The end of a capture raises and leaves its stream current,
    as torch does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, message: str | None) -> None:
        self.current = "main"
        self.forbidden_to: list[str] = []  # threads whose unsafe calls each capture forbids
        self._message = message
        fakes = {
            "graph_pool_handle": lambda: "pool",
            "Stream": lambda: "capturing",
            "synchronize": lambda: None,
            "current_stream": lambda: self.current,
            "set_stream": self._set,
            "stream": self._stream,
            "CUDAGraph": lambda: type("Graph", (), {"replay": lambda graph: None}),
            "graph": self._graph,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def _set(self, stream: str) -> None:
        self.current = stream

    @contextmanager
    def _stream(self, stream: str) -> Iterator[None]:
        self.current = stream
        yield
        self.current = "main"

    @contextmanager
    def _graph(self, graph: object, *, pool: str, stream: str, capture_error_mode: str) -> Iterator[None]:
        self.current = stream
        self.forbidden_to.append(capture_error_mode)
        yield
        if self._message:
            raise RuntimeError(self._message)
        self.current = "main"


def test_a_failed_capture_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch, "CUDA error: operation not permitted when stream is capturing")
    with pytest.raises(CaptureError, match="not permitted"):
        CudaRecorder().record(lambda: None)
    assert cuda.current == "main"


def test_warm_up_and_capture_use_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stream costs a workspace of cuBLAS."""
    cuda, seen = FakeCuda(monkeypatch, None), list[str]()
    recorder = CudaRecorder()
    for _ in range(2):
        recorder.record(lambda: seen.append(cuda.current))
    assert seen == ["capturing"] * 4 and cuda.current == "main"


def test_a_capture_with_gathers_forbids_nothing_to_the_threads_that_watch_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch, None)
    CudaRecorder().record(lambda: None)
    CudaRecorder(in_group=True).record(lambda: None)
    assert cuda.forbidden_to == ["global", "thread_local"]


def test_an_error_of_the_work_itself_is_no_failed_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, None)
    with pytest.raises(ZeroDivisionError):
        CudaRecorder().record(lambda: 1 // 0)
