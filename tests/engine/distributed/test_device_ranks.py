"""Ranks with a device each, started as for GPUs: on CPUs by gloo, with the reference backend."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import msgspec
import pytest
import torch
from torch import Tensor
from torch.distributed import HashStore

from engine.config import EngineConfig
from engine.distributed import host_processes
from engine.distributed.connections import RankConnections
from engine.distributed.follower import Follower
from engine.distributed.host_ranks import HostRanks
from engine.distributed.leader import LeadingKvPool, LeadingMixtral
from engine.distributed.packets import receive_packet
from engine.distributed.torch_group import TorchGroup
from engine.engine import Engine
from engine.errors import EngineConfigError, FatalEngineError
from engine.startup import assembly, loading
from engine.startup.backend import Backend
from engine.startup.loading import choose_device
from engine.types import Request, SamplingParams
from model.checkpoint.checkpoint import read_config
from model.cut import all_cuts
from model.forward_batch import ForwardBatch
from model.group import ALONE, Group
from model.kv_pool import KvPool
from model.loader import LoadOptions, load_model
from model.mixtral import Mixtral
from model.mixtral_cuda_graphs import EagerRecorder, GraphedMixtral
from model.ops.reference.ops import ReferenceOps
from tests.support.checkpoints.mixtral import Shape, random_model, save_in_layout, save_random_checkpoint
from tests.support.conditions import LIMIT_S, wait_until
from tests.support.hosts.ranks import on_each_rank
from tests.support.kernels.paged import CPU, Running, make_batch

SHAPE = Shape(dim=128, hidden_dim=144, num_heads=8, num_kv_heads=4, head_dim=16, num_experts=4, vocab_size=101)
BLOCK_SIZE, NUM_BLOCKS, TABLE_WIDTH = 4, 40, 8


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    path = tmp_path_factory.mktemp("model")
    save_random_checkpoint(SHAPE, path)
    return EngineConfig(
        model=str(path), backend="reference", dtype="float32", device="cpu", threads=1, max_num_seqs=4,
        max_num_batched_tokens=64, num_kv_blocks=24, max_model_len=256, group_timeout=LIMIT_S,
    )  # fmt: skip


@contextmanager
def ranks_of(alone: EngineConfig) -> Iterator[Engine]:
    """Load the engine as two ranks on this host."""
    engine = Engine.load(msgspec.structs.replace(alone, tensor_parallel_size=2))
    assert engine.loaded.ranks is not None
    try:
        yield engine
    finally:
        engine.loaded.ranks.close()


def generate(engine: Engine) -> dict[int, list[int]]:
    """Generate for requests of which four fit at once: batches, chunks, preemptions."""
    tokens: dict[int, list[int]] = {}
    for number in range(6):
        prompt = [1, *((31 * number + 7 * position) % 97 for position in range(20 + 9 * number))]
        engine.add(Request(number, prompt, SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)))
    while engine.has_work():
        for output in engine.step().outputs:
            assert output.error is None
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
    return tokens


def test_a_start_makes_the_ranks_and_they_generate_what_one_does_until_one_is_killed(alone: EngineConfig) -> None:
    expected = generate(Engine.load(alone))
    with ranks_of(alone) as engine:
        ranks, deaths = engine.loaded.ranks, list[str]()
        assert isinstance(ranks, HostRanks) and isinstance(ranks.group, TorchGroup)
        assert generate(engine) == expected
        ranks.on_death = deaths.append
        os.kill(*ranks.pids, signal.SIGKILL)
        wait_until(lambda: deaths == ["rank 1 on 127.0.0.1 is gone"])
        engine.add(Request(99, [1, 2, 3], SamplingParams(max_tokens=9, ignore_eos=True)))
        with pytest.raises(FatalEngineError, match=r"^rank 1 on 127.0.0.1 is gone$"):
            engine.step()


def test_a_rank_that_ends_before_it_joins_ends_the_start(alone: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, sys; os.read(int(sys.argv[1]), 1); sys.exit(3)"
    monkeypatch.setattr(host_processes, "HOST_RANK_COMMAND", (sys.executable, "-c", code))
    with pytest.raises(FatalEngineError, match=r"^rank 1 exited with 3$"), ranks_of(alone):
        pass


class FakeGpuMemory:
    """Memory of a GPU of 0.7 MB, of which the largest steps take 0.1 MB and graphs too."""

    pool_share = 1.0

    def free_bytes(self) -> int:
        return 700_000

    def bytes_left_after(self, largest_steps: Callable[[], None]) -> int:
        largest_steps()
        return 600_000

    def bytes_kept_by(self, build: Callable[[], object]) -> int:
        build()
        return 100_000


def test_largest_steps_and_captures_take_place_on_all_ranks_before_the_cache_is_sized(
    alone: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 does what it does with Triton, but with the reference backend; rank 1 follows it as any rank does."""
    config = msgspec.structs.replace(alone, num_kv_blocks=None)
    expected = generate(Engine.load(config))
    monkeypatch.setattr(
        loading, "choose_backend", lambda *_: Backend(ReferenceOps(), "triton", "reference-cpu", "none")
    )
    for module in (loading, assembly):
        monkeypatch.setattr(module, "memory_of", lambda device: FakeGpuMemory())
    monkeypatch.setattr(assembly, "compile_kernels", lambda *_: None)
    with ranks_of(config) as engine:
        loaded = engine.loaded
        assert loaded.limits.num_blocks + 1 == 500_000 // loaded.kv_block_bytes
        network = loaded.runner.model
        assert isinstance(network, LeadingMixtral) and isinstance(network._model, GraphedMixtral)
        assert list(network._model._captured) == [4, 2, 1]
        assert generate(engine) == expected


def test_fewer_gpus_than_ranks_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = EngineConfig(model="", device="cuda", tensor_parallel_size=8, nnodes=2)
    with pytest.raises(EngineConfigError) as caught:
        choose_device(config)
    expected = "--tensor-parallel-size 8 needs GPUs 0 to 3, and 2 are visible here; --device cpu works"
    assert str(caught.value) == expected
    with pytest.raises(EngineConfigError, match=r"^--first-gpu 2 needs GPU 2, and 2 are visible here"):
        choose_device(EngineConfig(model="", device="cuda", first_gpu=2))


def test_each_rank_of_a_host_has_the_next_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    config = EngineConfig(model="", tensor_parallel_size=4, nnodes=2, node_rank=1, first_gpu=2)
    devices = [choose_device(msgspec.structs.replace(config, local_rank=rank)) for rank in (0, 1)]
    assert devices == chosen == [torch.device("cuda", 2), torch.device("cuda", 3)]
    assert choose_device(EngineConfig(model="")) == torch.device("cuda")
    assert len(chosen) == 2


class ToldRank(RankConnections):
    """Rank 1 as rank 0 sees it, behind a socket pair."""

    def __init__(self, connection: socket.socket, group: Group) -> None:
        super().__init__()
        self.group = group
        self._connections = [connection]


def follow(connection: socket.socket, follower: Follower) -> None:
    while (packet := receive_packet(connection)) is not None:
        follower.handle(*packet)


def batches() -> Iterator[tuple[ForwardBatch, list[tuple[Running, int]]]]:
    """Yield a prompt step and decode steps of three sequences."""
    runs = [Running([(7 * i + 3 * s) % 97 for i in range(30)], list(range(1 + 8 * s, 9 + 8 * s))) for s in range(3)]
    for lengths in [(9, 4, 5), (1, 1, 1), (1, 1, 1), (1, 1, 0)]:
        parts = [(run, length) for run, length in zip(runs, lengths, strict=True) if length]
        yield make_batch(parts, BLOCK_SIZE), parts
        for run, length in parts:
            run.num_computed += length


def logits_of(model: Mixtral, pool: KvPool) -> list[Tensor]:
    with torch.no_grad():
        return [model.forward(batch, pool).clone() for batch, _ in batches()]


@pytest.mark.parametrize("enforce_eager", [False, True])
def test_ranks_capture_steps_together_and_replay_those_that_rank_0_replays(tmp_path: Path, enforce_eager: bool) -> None:
    """Both sides choose by the same rules: else one would gather padded rows, and the other not."""
    path, store = save_in_layout(random_model(SHAPE), tmp_path), HashStore()

    def load(group: Group) -> Mixtral:
        config = read_config(path)[0]
        return load_model(path, config, ReferenceOps(), LoadOptions(torch.float32, CPU, group=group))

    alone = load(ALONE)
    expected = logits_of(alone, KvPool(alone.config, NUM_BLOCKS, BLOCK_SIZE, "float32", CPU))
    with ThreadPoolExecutor(2) as threads:
        groups = list(threads.map(lambda cut: TorchGroup(cut, store, CPU, LIMIT_S, "127.0.0.1"), all_cuts(2)))
    network, other = on_each_rank(groups, load)
    config = EngineConfig(model=str(path), max_num_seqs=4, block_size=BLOCK_SIZE, enforce_eager=enforce_eager)
    ours, theirs = socket.socketpair()
    with theirs, ours:
        following = Thread(target=follow, args=(theirs, Follower(config, other)))
        following.start()
        ranks = ToldRank(ours, groups[0])
        for _ in range(2):  # a second pool, whose steps are captured anew
            pool = LeadingKvPool(network, ranks, NUM_BLOCKS, BLOCK_SIZE, "float32")
            ranks.capture_graphs(TABLE_WIDTH)
            graphed = GraphedMixtral(network, pool, EagerRecorder(), 4, TABLE_WIDTH)
            graphed.capture_all()
            told = LeadingMixtral(network if enforce_eager else graphed, ranks)
            for ours_, alone_ in zip(logits_of(told, pool), expected, strict=True):
                torch.testing.assert_close(ours_, alone_, rtol=1e-4, atol=1e-4)
        ranks.close()
        following.join(LIMIT_S)
    assert not following.is_alive()
