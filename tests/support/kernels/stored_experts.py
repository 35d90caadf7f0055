"""Networks whose experts are read when a step needs them, and reads that a test decides or holds."""

import ctypes
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint.pack.header import WEIGHTS_NAME
from model.config import ModelConfig
from model.dummy_weights import random_model
from model.forward_batch import ForwardBatch, Routing
from model.kv_pool import KvPool
from model.mixtral_native import NativeMixtral
from model.ops.native.expert_store import ExpertStore, Read
from model.ops.quantization import Quantization
from model.pack.load import load_pack, load_pack_in_part
from model.pack.weight_memory import WeightMemory
from tests.support.checkpoints.packs import write_pack
from tests.support.kernels.attention_cases import Heads
from tests.support.kernels.native_cases import ISAS, native
from tests.support.kernels.paged import CPU, Running, make_batch

BLOCK_SIZE = 4
CONFIG = replace(
    Heads(4, 2, 16).config, num_layers=4, num_experts=8, experts_per_token=2, hidden_dim=72, dim=48, vocab_size=32
)
NUM_EXPERTS = CONFIG.num_layers * CONFIG.num_experts
WIDE = replace(CONFIG, num_layers=2, num_experts=3, dim=256, hidden_dim=1024)  # an expert of 3 MB: two pieces
EIO = 5
EVERY_BATCH = list(range(1, 17))


def nothing(done: int, total: int) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Pack:
    """A pack with its network, whose experts are all in memory."""

    folder: Path
    config: ModelConfig

    @property
    def file(self) -> Path:
        return self.folder / WEIGHTS_NAME

    def resident(self, isa: str = ISAS[-1]) -> NativeMixtral:
        ops = native(isa, 2)
        return NativeMixtral(load_pack(self.folder, self.config, ops, "map", nothing).network, ops)

    def stored(
        self,
        num_slots: int,
        isa: str = ISAS[-1],
        memory: WeightMemory = "map",
        read: Read | None = None,
        *,
        in_page_cache: bool = False,
    ) -> NativeMixtral:
        ops = native(isa, 2)
        packed = load_pack_in_part(
            self.folder, self.config, ops, memory, num_slots, nothing, read, in_page_cache=in_page_cache
        )
        return NativeMixtral(packed.network, ops)


def new_pack(folder: Path, config: ModelConfig, dtype: torch.dtype, quantization: Quantization = "none") -> Pack:
    weights = random_model(config, dtype, CPU, native(ISAS[-1], 2, quantization), seed=0).weights
    return Pack(write_pack(weights, config, folder, quantization), config)


def store_of(network: NativeMixtral) -> ExpertStore:
    assert network.expert_store is not None
    return network.expert_store


def batches(config: ModelConfig, sizes: list[int], seed: int = 0) -> Iterator[ForwardBatch]:
    """Yield steps of one new token for each of so many sequences, which go on from step to step."""
    rng = random.Random(seed)
    runs = [Running([rng.randrange(config.vocab_size) for _ in sizes], _table(index)) for index in range(max(sizes))]
    for size in sizes:
        running = sorted(rng.sample(range(len(runs)), size))
        yield make_batch([(runs[index], 1) for index in running], BLOCK_SIZE)
        for index in running:
            runs[index].num_computed += 1


def _table(index: int) -> list[int]:
    return list(range(1 + 5 * index, 6 + 5 * index))


def logits_of(network: NativeMixtral, sizes: list[int], seed: int = 0) -> list[Tensor]:
    """Compute the steps; return the logits of each."""
    pool = KvPool(network.config, 5 * max(sizes) + 1, BLOCK_SIZE, "float32", CPU)
    return [network.forward(batch, pool) for batch in batches(network.config, sizes, seed)]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def routed(batch: ForwardBatch, experts: set[int], config: ModelConfig = CONFIG) -> ForwardBatch:
    """Let all rows use exactly these experts, in all layers."""
    num_rows, k = len(batch.positions), len(experts)
    masks = torch.tensor([e in experts for e in range(config.num_experts)]).expand(1, config.num_layers, -1)
    ids = torch.empty(config.num_layers, num_rows, k, dtype=torch.int32)
    each = torch.full((num_rows,), k, dtype=torch.int32)
    return replace(batch, routing=Routing(each, masks.contiguous(), torch.zeros(num_rows, dtype=torch.int64), ids))


class Source:
    """Reads of a file whose results a test decides."""

    def __init__(self, file: Path, result: Callable[[int, int], int | None]) -> None:
        """`result`: of the number of the call and the position: bytes to read, a negative error, or None for all."""
        self._descriptor = os.open(file, os.O_RDONLY)
        self._result = result
        self._lock = threading.Lock()
        self._num_calls = 0
        self.num_bytes = 0  # that were read so far

    def read(self, memory: int, num_bytes: int, position: int) -> int:
        with self._lock:
            number, self._num_calls = self._num_calls, self._num_calls + 1
        result = self._result(number, position)
        if result is not None and result <= 0:
            return result
        content = os.pread(self._descriptor, num_bytes if result is None else min(num_bytes, result), position)
        ctypes.memmove(memory, content, len(content))
        with self._lock:
            self.num_bytes += len(content)
        return len(content)


class HeldReads:
    """Reads of a file that wait until a test releases them."""

    def __init__(self, file: Path) -> None:
        self._held: dict[int, threading.Event] = {}  # by position, in the order in which they began
        self._changed = threading.Condition()
        self._is_open = False
        self._source = Source(file, self._hold)
        self.read = self._source.read

    def _hold(self, number: int, position: int) -> None:
        event = threading.Event()
        with self._changed:
            if self._is_open:
                return
            self._held[position] = event
            self._changed.notify_all()
        assert event.wait(60)

    def wait(self, count: int, timeout_s: float = 60) -> list[int]:
        """Wait until so many reads are held; return their positions."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._held) >= count, timeout_s)
            return list(self._held)

    def release(self, position: int) -> None:
        with self._changed:
            self._held.pop(position).set()

    def open(self) -> None:
        """Release all reads, and hold no later ones."""
        with self._changed:
            self._is_open = True
            while self._held:
                self._held.popitem()[1].set()

    @property
    def num_bytes(self) -> int:
        """Bytes that were read so far."""
        return self._source.num_bytes


def in_thread(compute: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=compute)
    thread.start()
    return thread
