"""Memory plan of a checkpoint: weights, KV cache and limits, from its config and headers alone. No torch."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.capacity.adapters import adapter_bytes, check_adapters_are_computed, check_adapters_fit
from engine.capacity.expert_memory import ExpertMemory, bytes_beside_weights, mapped_bytes_of, plan_expert_memory
from engine.capacity.packs import are_weights_evictable, settings_of_pack
from engine.capacity.rank_limits import check_ranks, num_memories
from engine.capacity.sizing import (
    BLOCKS,
    ELEMENT_BYTES,
    MAX_CPU_BUDGET,
    EngineLimits,
    bytes_for_longest,
    check_weights_fit,
    eviction_warnings,
    example_lengths,
    kv_block_bytes,
    least_beside_evictable,
    peak_blocks,
    requests_that_fit,
    served_dtype,
    served_kv_dtype,
    size_engine,
    weight_kind,
)
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from model.checkpoint.checkpoint import read_config, read_stored_weights
from model.checkpoint.errors import CheckpointError
from model.checkpoint.pack.header import is_pack
from model.checkpoint.stored_tensor import StoredWeight
from model.checkpoint.tensor_names import parameters_by_part
from model.checkpoint.weight_sizes import (
    PACKED_BLOCKS,
    decoding_warnings,
    kept_in_blocks,
    name_of_blocks,
    weight_bytes,
    weight_bytes_of_ranks,
)
from model.config import ModelConfig
from model.cut import all_cuts
from model.kv_format import KvDtype

WEIGHT_KINDS = ("float32", "bfloat16", "int8", "int4")


@dataclass(frozen=True, slots=True)
class Capacity:
    """Number of requests of one length that fit the KV cache and a step at once."""

    num_tokens: int
    num_requests: int
    bytes_per_request: int  # peak of its KV


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of one engine, as sized at start."""

    model: ModelConfig
    config: EngineConfig
    stored_bytes: int  # of the weights, in the checkpoint's files
    parameters: dict[str, int]  # by part of the network
    part_bytes: dict[str, dict[str, int]]  # by WEIGHT_KINDS (and the served kind), then by part; of all ranks together
    rank_weight_bytes: int  # served, of the rank with the largest part
    host_weight_bytes: int  # served, of the host whose ranks have the largest parts; of GPUs, of the fullest one
    weight_kind: str  # served: format of most weights, one of WEIGHT_KINDS, lossless, fp8 or BLOCKS
    kept_formats: str  # of the weights that stay as they are stored, "Q4_K+Q6_K"; empty if all are decoded
    memory_bytes: int  # of each host, or GPU, for weights, KV cache and activations
    dtype: str  # served: float32 or bfloat16
    needed_bytes: int  # of each host, enough for the adapters and one request of the longest context
    limits: EngineLimits | None  # None if it does not fit
    unfit_reason: str  # empty if it fits
    warnings: tuple[str, ...]
    experts: ExpertMemory | None = None  # of a pack whose experts are read when they are needed
    adapters: dict[str, int] = field(default_factory=dict)  # bytes of each LoRA adapter, by name

    @property
    def held_weight_bytes(self) -> int:
        """Bytes of each host's weights and adapters that the system may not drop."""
        mapped = mapped_bytes_of(self.config, self.host_weight_bytes, self.experts)
        return self.host_weight_bytes - mapped + self.adapter_bytes

    @property
    def adapter_bytes(self) -> int:
        """Bytes of all adapters."""
        return sum(self.adapters.values())

    @property
    def max_adapters(self) -> int:
        """Number of adapters that fit beside the weights and one request of the longest context, if all are as large
        as the largest of these."""
        needed = self.needed_bytes - self.adapter_bytes
        if self.host_weight_bytes == mapped_bytes_of(self.config, self.host_weight_bytes, self.experts):
            needed = least_beside_evictable(needed - self.host_weight_bytes, self.host_weight_bytes)
        return max(0, (self.memory_bytes - needed) // max(self.adapters.values()))

    @property
    def total_parameters(self) -> int:
        return sum(self.parameters.values())

    @property
    def active_parameters(self) -> int:
        """Parameters that compute one token: all but the experts that are not chosen. Mixtral-8x7B: 12.9 billion."""
        return self.total_parameters - self._idle_share(self.parameters["experts"])

    @property
    def weight_bytes(self) -> int:
        return self.total_bytes(self.weight_kind)

    def total_bytes(self, kind: str) -> int:
        """Bytes of all weights in the format `kind`, one of WEIGHT_KINDS."""
        return sum(self.part_bytes[kind].values())

    def active_bytes(self, kind: str) -> int:
        """Bytes of the weights that compute one token, in the format `kind`."""
        return self.total_bytes(kind) - self._idle_share(self.part_bytes[kind]["experts"])

    @property
    def kv_bytes_per_token(self) -> int:
        return self.model.kv_bytes_per_token(self.kv_dtype)

    @property
    def kv_dtype(self) -> KvDtype:
        return served_kv_dtype(self.config, self.model)

    @property
    def block_bytes(self) -> int:
        return kv_block_bytes(self.config, self.model)

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of the KV cache with the null block, on all hosts together; 0 if it does not fit."""
        return 0 if self.limits is None else (self.limits.num_blocks + 1) * self.block_bytes

    def _idle_share(self, expert_total: int) -> int:
        """Part of `expert_total`, a total over all experts, that belongs to the experts one token does not choose."""
        if not self.model.num_experts:
            return 0
        return expert_total * (self.model.num_experts - self.model.experts_per_token) // self.model.num_experts

    def capacities(self) -> list[Capacity]:
        """Return the capacity for a few lengths up to the longest; empty if the plan does not fit."""
        if self.limits is None:
            return []
        return [self._capacity(self.limits, length) for length in example_lengths(self.limits.max_model_len)]

    def _capacity(self, limits: EngineLimits, length: int) -> Capacity:
        config = self.config
        fitting = requests_that_fit(
            limits.num_blocks, length, config.block_size, self.model.window, config.max_num_seqs
        )
        peak = min(limits.num_blocks, peak_blocks(config, self.model, limits.max_num_batched_tokens, length))
        return Capacity(length, fitting, peak * self.block_bytes)


def plan_memory(config: EngineConfig, memory_bytes: int) -> MemoryPlan:
    """Plan an engine that may use `memory_bytes` on each host. Raises EngineConfigError for a bad checkpoint."""
    files = _read_files(config)
    config, model, stored = files.config, files.model, files.stored
    weights = _plan_weights(config, model, stored)
    fit = _fit(files, weights, memory_bytes)
    return MemoryPlan(
        model=model,
        config=config,
        stored_bytes=sum(weight.num_bytes for weight in stored.values()),
        parameters=parameters_by_part(stored.values()),
        part_bytes={kind: _bytes_of_parts(config, model, stored, kind) for kind in {*WEIGHT_KINDS, weights.kind}},
        rank_weight_bytes=weights.rank_bytes,
        host_weight_bytes=fit.host_bytes,
        weight_kind=weights.kind,
        kept_formats=weights.kept_formats,
        memory_bytes=memory_bytes,
        dtype=served_dtype(config, model),
        needed_bytes=fit.host_bytes + files.adapter_bytes + -(-_kv_need(config, model) // weights.num_memories),
        limits=fit.limits,
        unfit_reason=fit.unfit_reason,
        warnings=(
            *files.warnings,
            *_weight_warnings(config, stored, weights.block_formats, memory_bytes, fit.host_bytes),
            *(fit.limits.warnings if fit.limits else ()),
        ),
        experts=fit.experts,
        adapters=files.adapters,
    )


@dataclass(frozen=True)
class _Files:
    """Config and headers of a checkpoint and its adapters."""

    config: EngineConfig  # with the settings of a pack
    model: ModelConfig
    stored: Mapping[str, StoredWeight]
    adapters: dict[str, int]  # bytes of each, by name
    warnings: Sequence[str]

    @property
    def adapter_bytes(self) -> int:
        return sum(self.adapters.values())


def _read_files(config: EngineConfig) -> _Files:
    """Read config and headers. Raises EngineConfigError."""
    try:
        config = settings_of_pack(config)
        path = Path(config.model)
        model, warnings = read_config(path, config.sliding_window, config.experts_per_token, config.rope_theta)
        check_ranks(config, model)
        adapters = _adapters(config, model)
        return _Files(config, model, read_stored_weights(path, model), adapters, warnings)
    except CheckpointError as error:
        raise EngineConfigError(str(error)) from None


@dataclass(frozen=True)
class _Weights:
    """The weights as they are served, if all of them are in memory."""

    kind: str  # as MemoryPlan.weight_kind
    kept_formats: str
    block_formats: Collection[str]  # that the backend multiplies as they are stored
    num_memories: int  # of hosts, or GPUs
    rank_bytes: int  # of the rank with the largest part
    host_bytes: int  # of the fullest memory


def _plan_weights(config: EngineConfig, model: ModelConfig, stored: Mapping[str, StoredWeight]) -> _Weights:
    """Choose the format of the weights and size them in it."""
    block_formats = PACKED_BLOCKS if _is_native(config) and config.quantization == "none" else ()
    kept = kept_in_blocks(stored, block_formats)
    kind = weight_kind(config, model, is_in_blocks=bool(kept))
    of_ranks = _bytes_of_ranks(config, model, stored, kind)
    memories = num_memories(config, config.device)
    host_bytes = _largest_memory(of_ranks, len(of_ranks) // memories)
    return _Weights(kind, name_of_blocks(stored, kept), block_formats, memories, max(of_ranks), host_bytes)


@dataclass(frozen=True)
class _Fit:
    """How weights, adapters and KV cache share each memory."""

    host_bytes: int  # of the weights, of the fullest memory
    experts: ExpertMemory | None
    limits: EngineLimits | None  # None if they do not fit
    unfit_reason: str = ""


def _fit(files: _Files, weights: _Weights, memory_bytes: int) -> _Fit:
    """Divide the memory: experts that are read when they are needed take what the rest leaves, then the KV cache."""
    config, model, adapter_bytes = files.config, files.model, files.adapter_bytes
    host_bytes, experts = weights.host_bytes, None
    try:
        experts = plan_expert_memory(config, model, memory_bytes, adapter_bytes)
        host_bytes = host_bytes if experts is None else experts.dense_bytes + experts.num_bytes
        free_bytes = _free_bytes(config, host_bytes, weights.kind, memory_bytes, adapter_bytes, experts)
        limits = size_engine(config, model, weights.num_memories * free_bytes, MAX_CPU_BUDGET)  # as the fullest allows
    except (CheckpointError, EngineConfigError) as error:
        return _Fit(host_bytes, experts, None, str(error))
    return _Fit(host_bytes, experts, limits)


def _adapters(config: EngineConfig, model: ModelConfig) -> dict[str, int]:
    """Return the bytes of each adapter. Raises CheckpointError, and EngineConfigError if the engine computes none."""
    check_adapters_are_computed(config, "cuda" if config.device == "cuda" else "cpu")
    return adapter_bytes(config, model)


def _bytes_of_parts(
    config: EngineConfig, model: ModelConfig, stored: Mapping[str, StoredWeight], kind: str
) -> dict[str, int]:
    """Return the bytes of each part of the network in the weight format `kind`, of all ranks together."""
    element_format = _element_format(kind, served_dtype(config, model))
    return weight_bytes_of_ranks(stored, *element_format, config.tensor_parallel_size, model.num_kv_heads)


def _bytes_of_ranks(
    config: EngineConfig, model: ModelConfig, stored: Mapping[str, StoredWeight], kind: str
) -> list[int]:
    """Return the bytes of each rank's weights in the format `kind`."""
    element_format = _element_format(kind, served_dtype(config, model))
    cuts = all_cuts(config.tensor_parallel_size)
    return [sum(weight_bytes(stored, *element_format, cut, model.num_kv_heads).values()) for cut in cuts]


def _largest_memory(of_ranks: Sequence[int], ranks_of_each: int) -> int:
    """Return the sum over the ranks of the host, or GPU, that holds most."""
    return max(sum(of_ranks[first : first + ranks_of_each]) for first in range(0, len(of_ranks), ranks_of_each))


def _weight_warnings(
    config: EngineConfig,
    stored: Mapping[str, StoredWeight],
    block_formats: Collection[str],
    memory_bytes: int,
    host_bytes: int,
) -> Iterable[str]:
    """Return lines about weights that are decoded while they are loaded, or that do not all stay in memory."""
    if are_weights_evictable(config):
        return eviction_warnings(memory_bytes, host_bytes) if config.expert_memory is None else ()
    return () if is_pack(Path(config.model)) else decoding_warnings(stored, config.quantization, block_formats)


def _is_native(config: EngineConfig) -> bool:
    """Return whether the plan is for the native backend, which multiplies GGUF blocks."""
    return config.device != "cuda" and config.backend in ("auto", "native")


def _element_format(kind: str, dtype: str) -> tuple[int, str, Collection[str]]:
    """Return the arguments of weight_bytes for the weight format `kind`, with the other parts in `dtype`."""
    if kind == BLOCKS:
        return ELEMENT_BYTES[dtype], "none", PACKED_BLOCKS
    return (ELEMENT_BYTES[kind], "none", ()) if kind in ELEMENT_BYTES else (ELEMENT_BYTES[dtype], kind, ())


def _free_bytes(
    config: EngineConfig,
    host_bytes: int,
    kind: str,
    memory_bytes: int,
    adapter_bytes: int,
    experts: ExpertMemory | None,
) -> int:
    """Return what weights and adapters leave free on the fullest host, or GPU. Raises EngineConfigError."""
    if experts is not None or are_weights_evictable(config):
        check_adapters_fit(adapter_bytes, memory_bytes)
        mapped_bytes = host_bytes if experts is None else experts.dense_bytes
        return bytes_beside_weights(memory_bytes - adapter_bytes, mapped_bytes, experts)
    check_weights_fit(host_bytes, memory_bytes, kind)
    check_adapters_fit(adapter_bytes, memory_bytes - host_bytes)
    return memory_bytes - host_bytes - adapter_bytes


def _kv_need(config: EngineConfig, model: ModelConfig) -> int:
    """Bytes that must be free after the weights, on all hosts together: the configured KV pool, or one for the longest
    request."""
    if config.num_kv_blocks is not None:
        return (config.num_kv_blocks + 1) * kv_block_bytes(config, model)
    if config.kv_cache_memory_bytes is not None:
        return config.kv_cache_memory_bytes
    return bytes_for_longest(config, model, config.max_num_batched_tokens or MAX_CPU_BUDGET)
