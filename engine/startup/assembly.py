"""Make a loaded network ready for steps: its kernels, graphs, KV pool, runner and token budget."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from engine.capacity.adapters import bytes_for_adapters
from engine.capacity.expert_memory import ExpertMemory, bytes_beside_weights, mapped_bytes_of
from engine.capacity.expert_speed import budget_beside_reads
from engine.capacity.machine.host_resources import memory_limit_bytes
from engine.capacity.memory_share import size_within_limit
from engine.capacity.rank_limits import num_memories
from engine.capacity.sizing import (
    DEFAULT_GPU_BUDGET,
    MAX_CPU_BUDGET,
    EngineLimits,
    eviction_warnings,
    kv_block_bytes,
    served_kv_dtype,
)
from engine.config import EngineConfig
from engine.distributed.connections import RankConnections
from engine.distributed.leader import LeadingKvPool, LeadingMixtral
from engine.execution.experts.stats import ExpertReporter, ExpertStats
from engine.execution.model_runner import ModelRunner
from engine.execution.persistent_batch import PersistentBatch
from engine.execution.sampler import Sampler
from engine.startup.adapters import load_adapters
from engine.startup.backend import Backend
from engine.startup.device_memory import explain_out_of_memory, memory_of
from engine.startup.kernel_compilation import compile_kernels
from engine.startup.token_budget import measure_token_budget, sampled_token_budget
from model.checkpoint.identity import CheckpointIdentity
from model.config import ModelConfig
from model.kv_format import KvDtype
from model.kv_pool import KvPool
from model.mixtral import Mixtral
from model.mixtral_cuda_graphs import GraphedMixtral, recorder_for
from model.mixtral_native import expert_store_of, in_one_call
from model.ops.native.expert_store import ExpertStore
from model.profile_step import run_profile_steps

SAMPLED_BYTES = 1 << 30  # a start does not wait until so many bytes of mapped weights are read

ProgressCallback = Callable[[str, int, int], None]  # phase, loaded bytes, total bytes; see messages.Progress


@dataclass(frozen=True)
class LoadedNetwork:
    """A network on its device, without a KV pool."""

    network: Mixtral
    backend: Backend
    device: torch.device
    dtype: torch.dtype  # as served
    checkpoint: CheckpointIdentity
    weight_bytes: int  # on this host
    seconds: float  # that it took to load
    warnings: list[str] = field(default_factory=list)
    ranks: RankConnections | None = None  # the other processes that compute this model
    experts: ExpertMemory | None = None  # of a pack whose experts are read when they are needed
    disk_rate: Future[float] | None = None  # bytes per second at which missing experts are read


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, with its KV pool and limits."""

    config: ModelConfig
    runner: ModelRunner
    kv_pool: KvPool
    limits: EngineLimits
    dtype: torch.dtype
    kv_dtype: KvDtype
    device: torch.device
    backend: str  # native, triton or reference
    numerics: str  # everything in the backend that affects bits
    quantization: str  # of the weights: none, lossless, int8, int4, fp8, or the block formats of a file ("Q4_K+Q6_K")
    checkpoint: CheckpointIdentity
    weight_bytes: int  # on this host
    kv_block_bytes: int  # on this host
    phase_seconds: dict[str, float]
    warnings: tuple[str, ...]
    ranks: RankConnections | None = None  # the other processes that compute this model
    mapped_bytes: int = 0  # of the weights that the system may drop and read again from a pack
    experts: ExpertMemory | None = None  # of a pack whose experts are read when they are needed
    expert_store: ExpertStore | None = None  # the same, as the network uses it
    read_ahead: Callable[[], None] = lambda: None  # starts threads that read mapped weights, for when nothing is timed
    bytes_for_adapters: int = 0  # what weights, KV cache and the least memory for requests leave for adapters to come


def assemble(config: EngineConfig, loaded: LoadedNetwork, on_progress: ProgressCallback) -> LoadedModel:
    """Add a KV pool in the free memory, LoRA adapters and a measured token budget to a loaded network.

    Raises EngineConfigError, and CheckpointError for a bad adapter.
    """
    assembly = Assembly(config, loaded, on_progress)
    on_progress("kv cache", 0, 0)
    phase_seconds = {"weights": loaded.seconds}
    if assembly.has_graphs:
        phase_seconds["GPU kernels"] = assembly.compile_kernels()
    free_bytes, warnings = assembly.bytes_beside_weights()
    limits = assembly.size(free_bytes)
    kv_pool = assembly.create_pool(limits)
    on_progress("warm-up", 0, 0)
    warm_s = time.monotonic()
    runner = assembly.make_runner(kv_pool, limits.max_model_len)
    limits = assembly.with_token_budget(limits, runner)
    return LoadedModel(
        config=assembly.model.config,
        runner=runner,
        kv_pool=kv_pool,
        limits=limits,
        dtype=loaded.dtype,
        kv_dtype=assembly.kv_dtype,
        device=loaded.device,
        backend=loaded.backend.name,
        numerics=loaded.backend.numerics,
        quantization=loaded.backend.quantization,
        checkpoint=loaded.checkpoint,
        weight_bytes=loaded.weight_bytes,
        mapped_bytes=assembly.mapped_bytes,
        experts=loaded.experts,
        expert_store=expert_store_of(assembly.model),
        kv_block_bytes=kv_block_bytes(config, assembly.model.config) // num_memories(config, loaded.device.type),
        phase_seconds={**phase_seconds, "warm-up": time.monotonic() - warm_s},
        warnings=(*loaded.warnings, *warnings, *loaded.backend.warnings, *limits.warnings),
        ranks=loaded.ranks,
        bytes_for_adapters=bytes_for_adapters(config, assembly.model.config, limits, free_bytes),
    )


class Assembly:
    """Steps of assemble(), in the order of the methods."""

    def __init__(self, config: EngineConfig, loaded: LoadedNetwork, on_progress: ProgressCallback) -> None:
        self._config = config
        self._loaded = loaded
        self._num_memories = num_memories(config, loaded.device.type)
        self._network = in_one_call(loaded.network, loaded.backend.ops)  # of this rank
        self.model = self._leading(self._network)
        self.kv_dtype = served_kv_dtype(config, loaded.network.config)
        self.has_graphs = loaded.backend.name == "triton"
        self.mapped_bytes = mapped_bytes_of(config, loaded.weight_bytes, loaded.experts)
        self._on_progress = on_progress
        self._on_cpu = loaded.device.type == "cpu"
        self._memory = memory_of(loaded.device)
        with explain_out_of_memory(config, "the adapters are loaded", self._memory):  # before free memory is measured
            self._adapters = load_adapters(config, loaded.network.config, partial(on_progress, "adapters"))
        self._default_budget = MAX_CPU_BUDGET if self._on_cpu else DEFAULT_GPU_BUDGET
        self._num_rows = min(config.max_num_batched_tokens or self._default_budget, loaded.network.config.context_len)

    def compile_kernels(self) -> float:
        """Compile the kernels of a GPU; return the seconds that it took."""
        start = time.monotonic()
        compile_kernels(
            self._config, self.model, self.kv_dtype, self._num_rows, partial(self._on_progress, "GPU kernels")
        )
        return time.monotonic() - start

    def bytes_beside_weights(self) -> tuple[int, tuple[str, ...]]:
        """Return the memory beside weights, largest steps and graphs, and warnings."""
        warnings: tuple[str, ...] = ()
        free_bytes = self._bytes_left()
        if self.has_graphs:
            with explain_out_of_memory(self._config, "decode steps are captured", self._memory):
                free_bytes -= self._num_memories * self._memory.bytes_kept_by(self._trial_graphs)
        weight_bytes = self._loaded.weight_bytes
        if self.mapped_bytes == weight_bytes:
            warnings = eviction_warnings(free_bytes, weight_bytes)
        return bytes_beside_weights(free_bytes, self.mapped_bytes, self._loaded.experts), warnings

    def size(self, free_bytes: int) -> EngineLimits:
        """Return the limits that fit into `free_bytes` beside the weights."""
        return size_within_limit(
            self._config,
            self.model.config,
            free_bytes,
            self._default_budget,
            self._memory.pool_share,
            self._loaded.weight_bytes - self.mapped_bytes + self._adapters.num_bytes if self._on_cpu else None,
            memory_limit_bytes(),
        )

    def create_pool(self, limits: EngineLimits) -> KvPool:
        """Create the pool; where memory is short it takes all of its memory now."""
        with explain_out_of_memory(self._config, "the KV cache is created", self._memory):
            pool = self._new_pool(limits.num_blocks + 1)
            if limits.memory_share < 1.0 and self._on_cpu:
                pool.populate()
        return pool

    def make_runner(self, kv_pool: KvPool, max_model_len: int) -> ModelRunner:
        """Create the runner of the network, with captured decode steps on a GPU."""
        model, config, device = self.model, self._config, self._loaded.device
        if self.has_graphs:
            graphed = self._captured(kv_pool, max_model_len)
            model = model if config.enforce_eager else self._leading(graphed)
        experts = ExpertReporter(ExpertStats(model.config, device) if model.config.num_experts else None)
        vocab_size = model.config.vocab_size
        requests = PersistentBatch(config.max_num_seqs, max_model_len, config.block_size, vocab_size, device)
        sampler = Sampler(self._loaded.backend.ops, requests, model.config.eos_token_ids)
        return ModelRunner(model, kv_pool, requests, sampler, experts, self._adapters)

    def with_token_budget(self, limits: EngineLimits, runner: ModelRunner) -> EngineLimits:
        """Return the limits with the budget of a step that was measured on this CPU, unless it is configured."""
        if self._config.max_num_batched_tokens is not None or not self._on_cpu:
            return limits
        rate = None if self._loaded.disk_rate is None else self._loaded.disk_rate.result()  # before steps are timed
        is_read = self._loaded.experts is not None or self.mapped_bytes >= SAMPLED_BYTES
        if is_read and self._loaded.ranks is None:
            ops = self._loaded.backend.ops
            budget = sampled_token_budget(self._config, self.model, ops, self.kv_dtype, limits)
        else:
            budget = measure_token_budget(self._config, self.model.config, runner, limits)
        if self._loaded.experts is not None and rate is not None:
            budget = budget_beside_reads(budget, self._loaded.experts, rate)
        return replace(limits, max_num_batched_tokens=budget)

    def _leading(self, network: Mixtral) -> Mixtral:
        """Return the network that tells the other ranks each step, if there are any."""
        return network if self._loaded.ranks is None else LeadingMixtral(network, self._loaded.ranks)

    def _new_pool(self, num_blocks: int) -> KvPool:
        """Create a pool, and those of the other ranks."""
        block_size, ranks = self._config.block_size, self._loaded.ranks
        if ranks is not None:
            return LeadingKvPool(self._network, ranks, num_blocks, block_size, self.kv_dtype)
        layout = self._network.ops.kv_layout(self.kv_dtype, block_size)
        return KvPool(self._network.config, num_blocks, block_size, self.kv_dtype, self._loaded.device, layout)

    def _bytes_left(self) -> int:
        """Return the free memory after the largest steps; with several memories, as often that of the fullest one."""
        config, before = self._config, self._memory.free_bytes()
        with explain_out_of_memory(config, "a full step is measured", self._memory):
            free_bytes = self._memory.bytes_left_after(
                lambda: run_profile_steps(
                    self.model, self._num_rows, config.max_num_seqs, config.block_size, self.kv_dtype, self._new_pool
                )
            )
        if self._loaded.ranks is None:
            return free_bytes
        return self._loaded.ranks.free_bytes(free_bytes, 0 if self._on_cpu else max(0, before - free_bytes))

    def _captured(self, kv_pool: KvPool, max_model_len: int) -> GraphedMixtral:
        """Capture the decode steps of every size, or only compile their kernels if `enforce_eager`."""
        ranks, is_eager = self._loaded.ranks, self._config.enforce_eager
        recorder = recorder_for(self._loaded.device, is_eager=is_eager, in_group=ranks is not None)
        table_width = -(-max_model_len // self._config.block_size)
        if ranks is not None:
            ranks.capture_graphs(table_width)
        graphed = GraphedMixtral(self._network, kv_pool, recorder, self._config.max_num_seqs, table_width)
        graphed.capture_all(partial(self._on_progress, "CUDA graphs"))
        return graphed

    def _trial_graphs(self) -> GraphedMixtral:
        """Capture all graphs over a KV pool of two blocks, to measure their memory before the real pool is sized."""
        return self._captured(self._new_pool(2), self._config.max_model_len or self._network.config.context_len)
