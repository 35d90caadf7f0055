"""Load a model: device, dtype, weights, other ranks. engine/startup/assembly.py adds the KV pool and the rest."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from engine.capacity.adapters import adapter_bytes, check_adapters_are_computed
from engine.capacity.expert_memory import ExpertMemory, plan_cached_experts, plan_expert_memory
from engine.capacity.machine.disk_speed import disk_rate
from engine.capacity.machine.host_resources import num_cores
from engine.capacity.packs import pack_advice, settings_of_pack
from engine.capacity.rank_limits import check_gpus, check_ranks, num_memories, rank_warnings, with_rank_threads
from engine.capacity.sizing import served_dtype
from engine.config import EngineConfig
from engine.distributed.agreement import RankDescription
from engine.distributed.connections import RankConnections, group_of
from engine.distributed.host_ranks import HostRanks
from engine.distributed.new_group import group_maker
from engine.distributed.ranks import Ranks
from engine.errors import EngineConfigError
from engine.heartbeat import Heartbeat
from engine.startup.assembly import LoadedModel, LoadedNetwork, ProgressCallback, assemble
from engine.startup.backend import Backend, choose_backend
from engine.startup.device_memory import explain_out_of_memory, memory_of
from engine.startup.small_pages import log_small_pages
from engine.startup.weight_plan import plan_weights
from model.checkpoint.checkpoint import read_config, read_stored_weights
from model.checkpoint.errors import CheckpointError
from model.checkpoint.identity import CheckpointIdentity, contents_digest, files_digest, identify
from model.checkpoint.manifest import verify_manifest
from model.checkpoint.pack.check import verify_pack
from model.checkpoint.pack.header import WEIGHTS_NAME, is_pack, read_header
from model.checkpoint.stored_tensor import StoredWeight
from model.checkpoint.weight_sizes import decoding_warnings
from model.config import ModelConfig
from model.dummy_weights import random_model
from model.group import Group
from model.loader import LoadOptions, load_model
from model.mixtral import Mixtral, MixtralWeights
from model.mixtral_native import in_one_call
from model.ops.interface import Ops, packed_bytes
from model.ops.native.library import NativeUnavailableError
from model.ops.native.ops import NativeOps
from model.ops.native.packed_weights import num_plain
from model.pack.load import load_pack, load_pack_in_part
from model.pack.weight_memory import BackgroundReader

RANDOM_WEIGHTS = CheckpointIdentity("random", "random")
ADVISED_BYTES = 4 << 30  # of weights, for which a pack is recommended
DISK_SAMPLE_BYTES = 128 << 20  # 0.05 s of a disk with 2.7 GB/s
CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class LoadPlan:
    """Decisions about a load, made before weights are read."""

    config: EngineConfig  # with what a pack and several ranks decide
    model: ModelConfig
    stored: Mapping[str, StoredWeight]
    identity: CheckpointIdentity
    backend: Backend
    device: torch.device
    dtype: torch.dtype  # as served
    weight_bytes: int  # on this host
    experts: ExpertMemory | None  # of a pack whose experts are read when they are needed
    numerics: str  # that all ranks must share: without the formats of single matrices
    disk_rate: Future[float] | None
    warnings: list[str]

    @property
    def path(self) -> Path:
        return Path(self.config.model)

    @property
    def is_pack(self) -> bool:
        return is_pack(self.path)


def load(
    config: EngineConfig,
    on_progress: ProgressCallback,
    heartbeat: Heartbeat | None = None,
    end_ids: Sequence[int] = (),
) -> LoadedModel:
    """Load the checkpoint and size its engine. From now on all computation advances `heartbeat`.

    `end_ids`: tokens that end an answer, besides those of the config files.
    Raises CheckpointError for a bad checkpoint, EngineConfigError for settings that cannot work."""
    started_s = time.monotonic()
    plan = _plan(config, on_progress, heartbeat, end_ids)
    with _started_ranks(plan, partial(on_progress, "other ranks", 0, 0)) as ranks:
        network, reader = _load_network(plan, on_progress, ranks, started_s)
        if heartbeat is not None:
            network.network.on_layer = heartbeat.beat
        loaded = assemble(plan.config, network, on_progress)
    if reader is None:
        return loaded
    return replace(loaded, read_ahead=partial(reader.start, partial(log_small_pages, plan.path / WEIGHTS_NAME)))


def _plan(
    config: EngineConfig, on_progress: ProgressCallback, heartbeat: Heartbeat | None, end_ids: Sequence[int]
) -> LoadPlan:
    """Read config and headers, verify the files if that is asked for, choose the backend and divide the memory."""
    path = Path(config.model)
    config = settings_of_pack(config)
    model, warnings = read_config(path, config.sliding_window, config.experts_per_token, config.rope_theta)
    model = model.with_end_ids(end_ids)
    device, dtype = choose_device(config), DTYPES[served_dtype(config, model)]
    check_adapters_are_computed(config, device.type)
    check_ranks(config, model)
    if config.verify:
        verify = verify_pack if is_pack(path) else verify_manifest
        verify(path, partial(on_progress, "checksums"))
    warnings += rank_warnings(config, device.type)
    config = with_rank_threads(config)
    stored = read_stored_weights(path, model)
    identity = identify(stored.values(), is_verified=config.verify)
    chosen = choose_backend(config, device, dtype, heartbeat)
    weight_bytes, backend = plan_weights(config, model, stored, chosen, device, dtype)
    of_adapters = sum(adapter_bytes(config, model, partial(on_progress, "adapters")).values())
    weight_bytes, experts = _plan_experts(config, model, device, weight_bytes, of_adapters)
    if not is_pack(path):  # in which weights are decoded, and which names those that it was made of
        warnings += [*identity.warnings, *decoding_warnings(stored, config.quantization, backend.ops.block_formats)]
    return LoadPlan(
        config=config,
        model=model,
        stored=stored,
        identity=identity,
        backend=backend,
        device=device,
        dtype=dtype,
        weight_bytes=weight_bytes,
        experts=experts,
        numerics=chosen.numerics,
        disk_rate=_sample_disk(config, experts),
        warnings=warnings,
    )


def _load_network(
    plan: LoadPlan, on_progress: ProgressCallback, ranks: RankConnections | None, started_s: float
) -> tuple[LoadedNetwork, BackgroundReader | None]:
    """Read the weights and wait for those of other ranks; also return what reads mapped ones ahead."""
    config = plan.config
    options = _load_options(config, plan.dtype, plan.device, group_of(ranks), partial(on_progress, "weights"))
    model, reader = _load_weights(config, plan.model, plan.backend.ops, options, plan.experts)
    if ranks is not None:
        ranks.wait_until_loaded(lambda: on_progress("weights of other ranks", 0, 0))
    identity, weights_s = _identity_after_load(plan), time.monotonic() - started_s
    warnings = [*plan.warnings, *_lossless_warnings(config, model.weights)]
    if plan.backend.name == "native" and ranks is None and plan.weight_bytes >= ADVISED_BYTES and not plan.is_pack:
        warnings = [*warnings, pack_advice(config, weights_s)]
    network = LoadedNetwork(
        model,
        plan.backend,
        plan.device,
        plan.dtype,
        identity,
        plan.weight_bytes,
        weights_s,
        warnings,
        ranks,
        plan.experts,
        plan.disk_rate,
    )
    return network, reader


def _plan_experts(
    config: EngineConfig, model: ModelConfig, device: torch.device, weight_bytes: int, of_adapters: int
) -> tuple[int, ExpertMemory | None]:
    """Return how many of the weights' bytes, `weight_bytes` in all, are in memory or mapped, and the memory of experts
    that are read when a step needs them. `of_adapters`: bytes of all adapters."""
    free_bytes = memory_of(device).free_bytes()
    experts = plan_expert_memory(config, model, free_bytes, of_adapters)
    if experts is None:
        return weight_bytes, plan_cached_experts(config, model, free_bytes - of_adapters)
    return experts.dense_bytes + experts.num_bytes, experts


def _sample_disk(config: EngineConfig, experts: ExpertMemory | None) -> Future[float] | None:
    """Begin to measure the disk, if it decides the token budget; network and KV cache are made meanwhile."""
    if config.max_num_batched_tokens is not None or experts is None or not experts.num_missing:
        return None
    executor = ThreadPoolExecutor(1, "disk sample")
    sampled = executor.submit(disk_rate, Path(config.model), DISK_SAMPLE_BYTES)
    executor.shutdown(wait=False)  # when the sample is taken
    return sampled


def _identity_after_load(plan: LoadPlan) -> CheckpointIdentity:
    """Return the identity of the loaded weights: of a pack that of the packed ones, whatever file they are in. Raises
    CheckpointError if files were replaced meanwhile."""
    identity = plan.identity
    if files_digest(plan.stored.values()) != identity.files:
        raise CheckpointError(f"{plan.path}: files were replaced while they were loaded; start again")
    return replace(identity, contents=read_header(plan.path).contents) if plan.is_pack else identity


@contextmanager
def _started_ranks(plan: LoadPlan, on_wait: Callable[[], None]) -> Iterator[RankConnections | None]:
    """Start the processes of the other ranks, if there are any, and wait for those of other hosts. An exception in the
    block ends them. Ranks of the native backend on one host share memory."""
    config, backend, device = plan.config, plan.backend.name, plan.device
    ranks: RankConnections | None = None
    if config.nnodes > 1 or (config.tensor_parallel_size > 1 and backend != "native"):
        own = RankDescription(plan.numerics, contents_digest(plan.stored.values()))
        new_group, count = group_maker(backend, device), num_memories(config, device.type)
        ranks = HostRanks(config, own, version("smoe"), on_wait, new_group, count)
    elif config.tensor_parallel_size > 1:
        ranks = Ranks(config, plan.model)
    try:
        yield ranks
    except BaseException:
        if ranks is not None:
            ranks.close()
        raise


def rank_backend(
    config: EngineConfig, model: ModelConfig, device: torch.device = CPU, heartbeat: Heartbeat | None = None
) -> Backend:
    """Return the backend of a rank, which is not the first. Raises EngineConfigError."""
    return choose_backend(config, device, DTYPES[served_dtype(config, model)], heartbeat)


def host_backend(
    config: EngineConfig,
    model: ModelConfig,
    stored: Mapping[str, StoredWeight],
    device: torch.device,
    heartbeat: Heartbeat,
) -> Backend:
    """Return the backend of a rank that is a process like those of other hosts. Raises EngineConfigError, also if the
    weights of this host's ranks, or of this GPU's, do not fit."""
    backend = rank_backend(config, model, device, heartbeat)
    if config.local_rank == 0 or device.type != "cpu":
        plan_weights(config, model, stored, backend, device, DTYPES[served_dtype(config, model)])
    return backend


def load_rank(
    config: EngineConfig,
    model_config: ModelConfig,
    backend: Backend,
    group: Group,
    on_tensor: Callable[[], None],
    device: torch.device = CPU,
) -> Mixtral:
    """Load the part of one rank, which is not the first. Raises CheckpointError and EngineConfigError."""
    dtype = DTYPES[served_dtype(config, model_config)]
    options = _load_options(config, dtype, device, group, lambda done, total: on_tensor())
    model, _ = _load_weights(config, model_config, backend.ops, options)
    return in_one_call(model, backend.ops)


def _lossless_warnings(config: EngineConfig, weights: MixtralWeights) -> list[str]:
    """Return a line if lossless weights cannot hold some matrices."""
    linears = [weights.head, *(linear for layer in weights.layers for linear in (layer.qkv, layer.output))]
    count = num_plain(linears) if config.quantization == "lossless" else 0
    reason = "have too many different exponents for --quantization lossless"
    return [f"{count} matrices {reason}: they stay in bfloat16, and take more memory than planned"] if count else []


def _load_weights(
    config: EngineConfig,
    model_config: ModelConfig,
    ops: Ops,
    options: LoadOptions,
    experts: ExpertMemory | None = None,
) -> tuple[Mixtral, BackgroundReader | None]:
    """Return the network, and what reads it ahead if it is mapped."""
    path = Path(config.model)
    with explain_out_of_memory(config, "the weights are loaded", memory_of(options.device)), _explain_no_threads():
        if config.weights_memory != "auto" and isinstance(ops, NativeOps) and is_pack(path):
            memory, on_progress = config.weights_memory, options.on_progress
            if experts is None:
                packed = load_pack(path, model_config, ops, memory, on_progress, options.group)
            else:
                packed = load_pack_in_part(
                    path,
                    model_config,
                    ops,
                    memory,
                    experts.num_slots,
                    on_progress,
                    in_page_cache=experts.in_page_cache,
                )
            return packed.network, packed.reader
        return load_model(path, model_config, ops, options), None


@contextmanager
def _explain_no_threads() -> Iterator[None]:
    """Turn threads that read experts, and that the system cannot start, into an EngineConfigError."""
    try:
        yield
    except NativeUnavailableError as error:
        raise EngineConfigError(f"{error}: raise the limit of processes (ulimit -u, pids.max)") from None


def _load_options(
    config: EngineConfig,
    dtype: torch.dtype,
    device: torch.device,
    group: Group,
    on_progress: Callable[[int, int], None],
) -> LoadOptions:
    num_threads = config.threads or num_cores()
    return LoadOptions(dtype, device, on_progress, group, check_values=config.verify, num_threads=num_threads)


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
    weight_bytes, seconds = packed_bytes(model.weights), time.monotonic() - start
    network = LoadedNetwork(model, backend, device, dtype, RANDOM_WEIGHTS, weight_bytes, seconds)
    return assemble(config, network, lambda phase, done, total: None)


def choose_device(config: EngineConfig) -> torch.device:
    """Return the configured device, or CUDA if available; of several ranks each has a GPU. Raises EngineConfigError if
    the configured one is missing."""
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise EngineConfigError("--device cuda: no CUDA device is available; --device cpu works")
    if not has_cuda or config.device == "cpu":
        return CPU
    if config.tensor_parallel_size == 1 and not config.first_gpu:
        return torch.device("cuda")
    check_gpus(config, torch.cuda.device_count())
    device = torch.device("cuda", config.first_gpu + config.local_rank)
    torch.cuda.set_device(device)  # on which kernels are launched
    return device
