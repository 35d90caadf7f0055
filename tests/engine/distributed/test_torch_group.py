"""Ranks with a device each: the lines that NCCL would run, over gloo on CPUs."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed import HashStore

from engine.distributed.torch_group import SharedTokensMixtral, TorchGroup
from model.checkpoint.checkpoint import read_config
from model.cut import all_cuts
from model.forward_batch import ForwardBatch
from model.group import ALONE, Group, GroupEndedError
from model.kv_pool import KvPool
from model.loader import LoadOptions, load_model
from model.mixtral import Mixtral, uniform_routing
from model.mixtral_cuda_graphs import CaptureError, EagerRecorder, GraphedMixtral
from model.ops.reference.ops import ReferenceOps
from tests.support.checkpoints.mixtral import Shape, random_model, save_in_layout
from tests.support.conditions import LIMIT_S
from tests.support.hosts.ranks import on_each_rank
from tests.support.kernels.paged import CPU, Running, make_batch

WIDTH, UNIT, BLOCK_SIZE, NUM_BLOCKS = 200, 32, 4, 40
# 5 panels of hidden outputs and 4 of the vocabulary, the last ones not whole: ranks have uneven parts.
SHAPE = Shape(dim=128, hidden_dim=144, num_heads=8, num_kv_heads=4, head_dim=16, num_experts=4, vocab_size=101)


class FailingRecorder(EagerRecorder):
    """Recorder of which every capture but the first fails, after the work has run once."""

    def __init__(self) -> None:
        self._num_recorded = 0

    def record(self, work: Callable[[], object]) -> Callable[[], object]:
        self._num_recorded += 1
        work()
        if self._num_recorded > 1:
            raise CaptureError("RuntimeError: out of memory")
        return work


@contextmanager
def torch_groups(size: int) -> Iterator[list[TorchGroup]]:
    """Connect the group of each rank over the loopback interface."""
    store = HashStore()
    with ThreadPoolExecutor(size) as threads:
        groups = threads.map(lambda cut: TorchGroup(cut, store, CPU, LIMIT_S, "127.0.0.1"), all_cuts(size))
        yield list(groups)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_in_layout(random_model(SHAPE), tmp_path_factory.mktemp("sparse"))


def _load(path: Path, group: Group) -> Mixtral:
    torch.set_num_threads(1)
    return load_model(path, read_config(path)[0], ReferenceOps(), LoadOptions(torch.float32, CPU, group=group))


def _graphed(model: Mixtral, recorder: EagerRecorder) -> GraphedMixtral:
    graphed = GraphedMixtral(model, _pool(model), recorder, 4, 8)
    graphed.capture_all()
    return graphed


def _pool(model: Mixtral) -> KvPool:
    return KvPool(model.group.cut.with_own_heads(model.config), NUM_BLOCKS, BLOCK_SIZE, "float32", CPU)


def _batches(model: Mixtral, with_ids: bool = True) -> Iterator[ForwardBatch]:
    """Yield prompts and decode steps of three sequences, whose blocks begin with nothing in them."""
    runs = [Running([(7 * i + 3 * s) % 97 for i in range(30)], list(range(1 + 8 * s, 9 + 8 * s))) for s in range(3)]
    for lengths in [(9, 4, 5), (1, 1, 1), (1, 1, 1), (1, 1, 0), (1, 0, 0)]:
        parts = [(run, length) for run, length in zip(runs, lengths, strict=True) if length]
        batch = make_batch(parts, BLOCK_SIZE)
        routing = uniform_routing(model.config, len(batch.token_ids), CPU)
        token_ids = batch.token_ids if with_ids else torch.zeros_like(batch.token_ids)
        yield replace(batch, routing=routing, token_ids=token_ids)
        for run, length in parts:
            run.num_computed += length


def _steps(model: Mixtral, pool: KvPool, with_ids: bool = True) -> list[Tensor]:
    """Compute all batches; return logits and expert ids."""
    results = []
    for batch in _batches(model, with_ids):
        results.append(model.forward(batch, pool).clone())
        assert batch.routing is not None
        results.append(batch.routing.expert_ids)
    return results


def _assert_near(ranks: Sequence[list[Tensor]], expected: list[Tensor]) -> None:
    """Compare; torch's own products may take another order for another number of outputs or rows."""
    for rank in ranks:
        for ours, theirs in zip(rank, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [2, 3])
def test_each_rank_gets_the_columns_of_all(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, torch.float32), (0, torch.float32), (7, torch.bfloat16), (500, torch.float32)]
    wholes = [torch.randn(rows, WIDTH, generator=generator).to(dtype) for rows, dtype in shapes]
    wholes.append(wholes[-1][:, : 32 * size].contiguous())  # equal parts

    def gather_all(group: TorchGroup) -> list[Tensor]:
        parts = [(whole, group.cut.part(whole.shape[1], UNIT)) for whole in wholes]
        return [group.gather(whole[:, own.start : own.stop], whole.shape[1], UNIT) for whole, own in parts]

    with torch_groups(size) as groups:
        for gathered in on_each_rank(groups, gather_all):
            assert all(torch.equal(ours, whole) for ours, whole in zip(gathered, wholes, strict=True))


def test_ranks_on_devices_agree_with_one(checkpoint: Path) -> None:
    alone = _load(checkpoint, ALONE)
    expected = _steps(alone, _pool(alone))
    with torch_groups(2) as groups:
        networks = on_each_rank(groups, lambda group: _load(checkpoint, group))
        _assert_near(on_each_rank(networks, lambda network: _steps(network, _pool(network))), expected)


def test_replayed_steps_contain_the_gathers_and_equal_plain_ones(checkpoint: Path) -> None:
    with torch_groups(2) as groups:
        networks = on_each_rank(groups, lambda group: _load(checkpoint, group))
        plain = on_each_rank(networks, lambda network: _steps(network, _pool(network)))
        graphed = on_each_rank(networks, lambda network: _graphed(network, EagerRecorder()))
        assert [list(network._captured) for network in graphed] == [[4, 2, 1]] * 2
        _assert_near(on_each_rank(graphed, lambda network: _steps(network, network._kv_pool)), plain[0])


def test_a_bucket_that_a_rank_could_not_capture_runs_without_a_graph_on_all(checkpoint: Path) -> None:
    with torch_groups(2) as groups:
        networks = on_each_rank(groups, lambda group: _load(checkpoint, group))
        plain = on_each_rank(networks, lambda network: _steps(network, _pool(network)))
        recorders = {0: EagerRecorder(), 1: FailingRecorder()}
        graphed = on_each_rank(networks, lambda network: _graphed(network, recorders[network.group.cut.rank]))
        assert [list(network._captured) for network in graphed] == [[4]] * 2
        _assert_near(on_each_rank(graphed, lambda network: _steps(network, network._kv_pool)), plain[0])


@pytest.mark.parametrize("with_graphs", [True, False])
def test_token_ids_come_from_the_device_of_rank_0(checkpoint: Path, with_graphs: bool) -> None:
    """Rank 1 is told steps whose ids rank 0's host does not know yet either."""
    with torch_groups(2) as groups:
        networks = on_each_rank(groups, lambda group: _load(checkpoint, group))
        plain = on_each_rank(networks, lambda network: _steps(network, _pool(network)))

        def run(network: Mixtral) -> list[Tensor]:
            group, pool = network.group, _pool(network)
            assert isinstance(group, TorchGroup)
            if with_graphs:
                network = _graphed(network, EagerRecorder())
                pool = network._kv_pool
            return _steps(SharedTokensMixtral(network, group), pool, with_ids=group.cut.rank == 0)

        _assert_near(on_each_rank(networks, run), plain[0])


def test_a_rank_that_does_not_answer_ends_the_group() -> None:
    with torch_groups(2) as groups:
        groups[0]._backend._set_default_timeout(timedelta(seconds=0.2))
        with pytest.raises(GroupEndedError, match=r"^a gather among the ranks failed: .+") as caught:
            groups[0].gather(torch.zeros(1, 32), 64, 32)
        assert "\n" not in str(caught.value)
