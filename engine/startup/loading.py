"""Load a model: device, dtype, weights, KV pool, token budget."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from engine.capacity.host_resources import memory_limit_bytes, num_cores
from engine.capacity.memory_share import size_within_limit
from engine.capacity.packs import are_weights_evictable, pack_advice, settings_of_pack
from engine.capacity.rank_limits import check_ranks, rank_warnings, with_rank_threads
from engine.capacity.sizing import (
    DEFAULT_GPU_BUDGET,
    MAX_CPU_BUDGET,
    EngineLimits,
    bytes_beside_evictable,
    eviction_warnings,
    kv_block_bytes,
    served_dtype,
    served_kv_dtype,
)
from engine.config import EngineConfig
from engine.distributed.agreement import RankDescription
from engine.distributed.connections import RankConnections, group_of
from engine.distributed.host_ranks import HostRanks
from engine.distributed.leader import LeadingKvPool, LeadingMixtral
from engine.distributed.ranks import Ranks
from engine.errors import EngineConfigError
from engine.execution.adapters import AdapterStore
from engine.execution.expert_stats import ExpertReporter, ExpertStats
from engine.execution.model_runner import ModelRunner
from engine.execution.persistent_batch import PersistentBatch
from engine.execution.sampler import Sampler
from engine.heartbeat import Heartbeat
from engine.startup.adapters import load_adapters
from engine.startup.backend import Backend, choose_backend
from engine.startup.device_memory import DeviceMemory, explain_out_of_memory, memory_of
from engine.startup.kernel_compilation import compile_kernels
from engine.startup.token_budget import measure_token_budget, sampled_token_budget
from engine.startup.weight_plan import plan_weights
from model.checkpoint.checkpoint import read_config, read_stored_weights
from model.checkpoint.errors import CheckpointError
from model.checkpoint.identity import CheckpointIdentity, contents_digest, identify
from model.checkpoint.manifest import verify_manifest
from model.checkpoint.pack.check import verify_pack
from model.checkpoint.pack.header import is_pack, read_header
from model.checkpoint.stored_tensor import StoredWeight
from model.checkpoint.weight_sizes import decoding_warnings
from model.config import ModelConfig
from model.dummy_weights import random_model
from model.group import Group
from model.kv_format import KvDtype
from model.kv_pool import KvPool
from model.loader import load_model
from model.mixtral import Mixtral
from model.mixtral_cuda_graphs import CudaRecorder, EagerRecorder, GraphedMixtral
from model.mixtral_native import NativeMixtral
from model.ops.interface import Ops, packed_bytes
from model.ops.native.ops import NativeOps
from model.pack.load import load_pack
from model.pack.weight_memory import BackgroundReader
from model.profile_step import run_profile_steps

RANDOM_WEIGHTS = CheckpointIdentity("random", "random")
SAMPLED_BYTES = 1 << 30  # a start does not wait until so many bytes of mapped weights are read
ADVISED_BYTES = 4 << 30  # of weights, for which a pack is recommended
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

ProgressCallback = Callable[[str, int, int], None]  # phase, loaded bytes, total bytes


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
    quantization: str  # of the weights: none, int8, int4, fp8, or the block formats of a file ("Q4_K+Q6_K")
    checkpoint: CheckpointIdentity
    weight_bytes: int  # on this host
    kv_block_bytes: int  # on this host
    phase_seconds: dict[str, float]
    warnings: tuple[str, ...]
    ranks: RankConnections | None = None  # the other processes that compute this model
    mapped_bytes: int = 0  # of the weights that the system may drop and read again from a pack


def load(config: EngineConfig, on_progress: ProgressCallback, heartbeat: Heartbeat | None = None) -> LoadedModel:
    """Load the checkpoint and size its engine. From now on all computation advances `heartbeat`.

    Raises CheckpointError for a bad checkpoint, EngineConfigError for settings that cannot work."""
    start, path = time.monotonic(), Path(config.model)
    config = settings_of_pack(config)
    model_config, warnings = read_config(path, config.sliding_window, config.experts_per_token, config.rope_theta)
    if config.verify:
        verify = verify_pack if is_pack(path) else verify_manifest
        verify(path, partial(on_progress, "checksums"))
    device, dtype = choose_device(config), DTYPES[served_dtype(config, model_config)]
    check_ranks(config, model_config, device.type)
    warnings += rank_warnings(config)
    config = with_rank_threads(config)
    stored = read_stored_weights(path, model_config)
    identity = identify(stored.values())
    backend = choose_backend(config, device, dtype, heartbeat)
    numerics = backend.numerics
    weight_bytes, backend = plan_weights(config, model_config, stored, backend, device, dtype)
    if not is_pack(path):  # in which they are decoded
        warnings += decoding_warnings(stored, config.quantization, backend.ops.block_formats)
    with _started_ranks(config, model_config, numerics, stored, partial(on_progress, "other ranks", 0, 0)) as ranks:
        model, reader = _load_weights(
            config, model_config, dtype, device, backend.ops, group_of(ranks), partial(on_progress, "weights")
        )
        if ranks is not None:
            ranks.wait_until_loaded(lambda: on_progress("weights of other ranks", 0, 0))
        if identify(stored.values()) != identity:
            raise CheckpointError(f"{config.model}: files were replaced while they were loaded; start again")
        if is_pack(path):  # the fingerprint names the weights that were packed, whatever file they are in
            identity = replace(identity, contents=read_header(path).contents)
        if heartbeat is not None:
            model.on_layer = heartbeat.beat
        weights_s = time.monotonic() - start
        if backend.name == "native" and ranks is None and weight_bytes >= ADVISED_BYTES and not is_pack(path):
            warnings += [pack_advice(config, weights_s)]
        loaded = _assemble(
            config, model, backend, device, identity, weight_bytes, weights_s, warnings, on_progress, ranks
        )
        if reader is not None:  # now, so that it does not slow down what was measured
            reader.start()
        return loaded


@contextmanager
def _started_ranks(
    config: EngineConfig,
    model: ModelConfig,
    numerics: str,
    stored: Mapping[str, StoredWeight],
    on_wait: Callable[[], None],
) -> Iterator[RankConnections | None]:
    """Start the processes of the other ranks, if there are any, and wait for those of other hosts. An exception in the
    block ends them."""
    ranks: RankConnections | None = None
    if config.nnodes > 1:
        own = RankDescription(numerics, contents_digest(stored.values()))
        ranks = HostRanks(config, own, version("smoe"), on_wait)
    elif config.tensor_parallel_size > 1:
        ranks = Ranks(config, model)
    try:
        yield ranks
    except BaseException:
        if ranks is not None:
            ranks.close()
        raise


def rank_backend(config: EngineConfig, model: ModelConfig, heartbeat: Heartbeat | None = None) -> Backend:
    """Return the backend of a rank, which is not the first. Raises EngineConfigError."""
    return choose_backend(config, torch.device("cpu"), DTYPES[served_dtype(config, model)], heartbeat)


def host_backend(
    config: EngineConfig, model: ModelConfig, stored: Mapping[str, StoredWeight], heartbeat: Heartbeat
) -> Backend:
    """Return the backend of a rank on a host that is not the first. Raises EngineConfigError, also if the weights of
    this host's ranks do not fit."""
    backend = rank_backend(config, model, heartbeat)
    if config.local_rank == 0:
        plan_weights(config, model, stored, backend, torch.device("cpu"), DTYPES[served_dtype(config, model)])
    return backend


def load_rank(
    config: EngineConfig, model_config: ModelConfig, backend: Backend, group: Group, on_tensor: Callable[[], None]
) -> Mixtral:
    """Load the part of one rank, which is not the first. Raises CheckpointError and EngineConfigError."""
    device, dtype = torch.device("cpu"), DTYPES[served_dtype(config, model_config)]
    model, _ = _load_weights(config, model_config, dtype, device, backend.ops, group, lambda done, total: on_tensor())
    assert isinstance(backend.ops, NativeOps), "rank 0 has checked the backend"
    return _in_one_call(model, backend.ops)


def _in_one_call(model: Mixtral, ops: Ops) -> Mixtral:
    """Return the network that computes a step in one call of the library, if the backend has it."""
    return NativeMixtral(model, ops) if isinstance(ops, NativeOps) else model


def _load_weights(
    config: EngineConfig,
    model_config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    ops: Ops,
    group: Group,
    on_progress: Callable[[int, int], None],
) -> tuple[Mixtral, BackgroundReader | None]:
    """Return the network, and what reads it ahead if it is mapped."""
    path = Path(config.model)
    with explain_out_of_memory(config, "the weights are loaded", memory_of(device)):
        if config.weights_memory != "auto" and isinstance(ops, NativeOps) and is_pack(path):
            packed = load_pack(path, model_config, ops, config.weights_memory, on_progress, group)
            return packed.network, packed.reader
        model = load_model(
            path,
            model_config,
            dtype,
            device,
            ops,
            on_progress,
            group=group,
            check_values=config.verify,
            num_threads=config.threads or num_cores(),
        )
        return model, None


def load_random(config: EngineConfig, model_config: ModelConfig) -> LoadedModel:
    """Build a model of this shape with random weights on the device, for measurements without a checkpoint.

    Raises EngineConfigError.
    """
    if config.tensor_parallel_size > 1:
        raise EngineConfigError("several ranks need a checkpoint: random weights are not divided among them")
    start = time.monotonic()
    device, dtype = choose_device(config), DTYPES[served_dtype(config, model_config)]
    backend = choose_backend(config, device, dtype)
    with explain_out_of_memory(config, "the weights are created", memory_of(device)):
        model = random_model(model_config, dtype, device, backend.ops, seed=0)
    weights_s = time.monotonic() - start
    return _assemble(
        config,
        model,
        backend,
        device,
        RANDOM_WEIGHTS,
        packed_bytes(model.weights),
        weights_s,
        [],
        lambda phase, done, total: None,
    )


def _assemble(
    config: EngineConfig,
    model: Mixtral,
    backend: Backend,
    device: torch.device,
    identity: CheckpointIdentity,
    weight_bytes: int,
    weights_s: float,
    warnings: list[str],
    on_progress: ProgressCallback,
    ranks: RankConnections | None = None,
) -> LoadedModel:
    """Add a KV pool in the free memory and a measured token budget to a loaded network."""
    model = _in_one_call(model, backend.ops)
    if ranks is not None:
        model = LeadingMixtral(model, ranks)
    model_config, memory = model.config, memory_of(device)
    adapters = load_adapters(config, model_config, backend.name)
    on_progress("kv cache", 0, 0)
    default_budget = MAX_CPU_BUDGET if device.type == "cpu" else DEFAULT_GPU_BUDGET
    kv_dtype = served_kv_dtype(config, model_config)
    num_rows = min(config.max_num_batched_tokens or default_budget, model_config.context_len)
    phase_seconds = {"weights": weights_s}
    if backend.name == "triton":
        start = time.monotonic()
        compile_kernels(config, model, kv_dtype, num_rows, partial(on_progress, "GPU kernels"))
        phase_seconds["GPU kernels"] = time.monotonic() - start
    free_bytes = _bytes_left(config, model, memory, kv_dtype, num_rows, ranks)
    if backend.name == "triton":
        with explain_out_of_memory(config, "decode steps are captured", memory):
            free_bytes -= memory.bytes_kept_by(lambda: _trial_graphs(config, model, kv_dtype, on_progress))
    mapped_bytes = weight_bytes if are_weights_evictable(config) else 0
    if mapped_bytes:
        warnings = [*warnings, *eviction_warnings(free_bytes, weight_bytes)]
        free_bytes = bytes_beside_evictable(free_bytes, weight_bytes)
    host_bytes = weight_bytes - mapped_bytes if device.type == "cpu" else None
    limits = size_within_limit(
        config, model_config, free_bytes, default_budget, memory.pool_share, host_bytes, memory_limit_bytes()
    )
    with explain_out_of_memory(config, "the KV cache is created", memory):
        kv_pool = _create_pool(model, limits, config.block_size, kv_dtype, device, ranks)
    on_progress("warm-up", 0, 0)
    warm_s = time.monotonic()
    if backend.name == "triton":
        graphed = _captured(config, model, kv_pool, limits.max_model_len, on_progress)
        model = model if config.enforce_eager else graphed
    runner = _make_runner(config, model, backend, kv_pool, limits.max_model_len, adapters)
    if config.max_num_batched_tokens is None and device.type == "cpu":
        if mapped_bytes >= SAMPLED_BYTES and ranks is None:
            budget = sampled_token_budget(config, model, backend.ops, kv_dtype, limits)
        else:
            budget = measure_token_budget(config, model_config, runner, limits)
        limits = replace(limits, max_num_batched_tokens=budget)
    return LoadedModel(
        config=model_config,
        runner=runner,
        kv_pool=kv_pool,
        limits=limits,
        dtype=DTYPES[served_dtype(config, model_config)],
        kv_dtype=kv_dtype,
        device=device,
        backend=backend.name,
        numerics=backend.numerics,
        quantization=backend.quantization,
        checkpoint=identity,
        weight_bytes=weight_bytes,
        mapped_bytes=mapped_bytes,
        kv_block_bytes=kv_block_bytes(config, model_config) // config.nnodes,
        phase_seconds={**phase_seconds, "warm-up": time.monotonic() - warm_s},
        warnings=(*warnings, *backend.warnings, *limits.warnings),
        ranks=ranks,
    )


def _bytes_left(
    config: EngineConfig,
    model: Mixtral,
    memory: DeviceMemory,
    kv_dtype: KvDtype,
    num_rows: int,
    ranks: RankConnections | None,
) -> int:
    """Return the free memory after the largest steps; with ranks on several hosts, of the host that has least."""
    with explain_out_of_memory(config, "a full step is measured", memory):
        free_bytes = memory.bytes_left_after(
            lambda: run_profile_steps(model, num_rows, config.max_num_seqs, config.block_size, kv_dtype)
        )
    return free_bytes if ranks is None else ranks.free_bytes(free_bytes)


def _create_pool(
    model: Mixtral,
    limits: EngineLimits,
    block_size: int,
    dtype: KvDtype,
    device: torch.device,
    ranks: RankConnections | None,
) -> KvPool:
    """Create the pool; where memory is short it takes all of its memory now."""
    num_blocks = limits.num_blocks + 1
    if ranks is not None:
        pool: KvPool = LeadingKvPool(model, ranks, num_blocks, block_size, dtype)
    else:
        pool = KvPool(model.config, num_blocks, block_size, dtype, device)
    if limits.memory_share < 1.0 and device.type == "cpu":
        pool.populate()
    return pool


def _captured(
    config: EngineConfig, model: Mixtral, kv_pool: KvPool, max_model_len: int, on_progress: ProgressCallback
) -> GraphedMixtral:
    """Capture the decode steps of every size, or only compile their kernels if `enforce_eager`."""
    recorder = EagerRecorder() if config.enforce_eager else CudaRecorder()
    table_width = -(-max_model_len // config.block_size)
    graphed = GraphedMixtral(model, kv_pool, recorder, config.max_num_seqs, table_width)
    graphed.capture_all(lambda done, total: on_progress("CUDA graphs", done, total))
    return graphed


def _trial_graphs(
    config: EngineConfig, model: Mixtral, kv_dtype: KvDtype, on_progress: ProgressCallback
) -> GraphedMixtral:
    """Capture all graphs over a KV pool of two blocks, to measure their memory before the real pool is sized."""
    pool = KvPool(model.config, 2, config.block_size, kv_dtype, model.weights.embedding.device)
    return _captured(config, model, pool, config.max_model_len or model.config.context_len, on_progress)


def _make_runner(
    config: EngineConfig, model: Mixtral, backend: Backend, kv_pool: KvPool, max_model_len: int, adapters: AdapterStore
) -> ModelRunner:
    """Create the runner of the network."""
    device = kv_pool.k.device
    experts = ExpertReporter(ExpertStats(model.config, device) if model.config.num_experts else None)
    requests = PersistentBatch(config.max_num_seqs, max_model_len, config.block_size, model.config.vocab_size, device)
    sampler = Sampler(backend.ops, requests, model.config.eos_token_ids)
    return ModelRunner(model, kv_pool, requests, sampler, experts, adapters)


def choose_device(config: EngineConfig) -> torch.device:
    """Return the configured device, or CUDA if available. Raises EngineConfigError if the configured one is missing."""
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise EngineConfigError("--device cuda: no CUDA device is available; --device cpu works")
    return torch.device("cuda" if has_cuda and config.device != "cpu" else "cpu")
