"""Settings of an engine, built by server/settings/engine_config.py or from the arguments of LocalEngine."""

from typing import Literal

import msgspec

SLOTS_PER_RESERVED = 8  # 1 of 8 running slots is reserved for tenants without a running request


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one engine. None: derived from the checkpoint or the machine."""

    model: str  # directory of the checkpoint, or GGUF file
    verify: bool = False  # check the files against SHA256SUMS, and all weights for NaN and Inf
    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["auto", "reference", "native", "triton"] = "auto"  # auto: native on a CPU, triton on a GPU
    deterministic: bool = False  # on a GPU: a row's bits do not depend on the batch (on a CPU native's never do)
    # Of the native backend; auto: the fastest.
    isa: Literal[
        "auto", "portable", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx", "neon", "neonbf16"
    ] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: the checkpoint's own
    quantization: Literal["none", "lossless", "int8", "int4", "fp8"] = "none"  # of the weights, while they are loaded
    # Of a pack's weights: map shares the file's pages, copy reads them into own memory, lock keeps mapped ones there.
    weights_memory: Literal["auto", "map", "copy", "lock"] = "auto"  # auto: map for packs; other checkpoints are copied
    # Of a pack: bytes for experts, of which the others are read when they are needed; None: all are in memory.
    expert_memory: int | Literal["auto"] | None = None  # auto: what is left beside everything else
    kv_cache_dtype: Literal["auto", "bf16", "int8"] = "auto"  # auto: as computed; int8: a scale per position and head
    threads: int | None = None  # None: one per core this process may use
    tensor_parallel_size: int = 1  # processes (ranks) that share the model, on CPUs with `threads` each or on GPUs
    first_gpu: int = 0  # of this host's first rank; its other ranks have the next ones
    nnodes: int = 1  # hosts that the ranks are divided among
    node_rank: int = 0  # which of them this is
    local_rank: int = 0  # which of the ranks of this host
    master_addr: str = ""  # address of the host with node_rank 0
    master_port: int = 29500  # at which rank 0 receives the others
    group_timeout: float = 20.0  # seconds after which a rank that says nothing on the network is lost
    agent_store_attempt: int | None = None  # torchrun's agent has the master port, and has started so often before
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None  # None: about 0.5 s of work on a CPU (measured at start), 2,048 on a GPU
    block_size: int = 16
    kv_cache_memory_bytes: int | None = None
    num_kv_blocks: int | None = None  # usable blocks; overrides kv_cache_memory_bytes
    enable_prefix_caching: bool = True
    scheduling_policy: Literal["priority", "fcfs"] = "priority"  # fcfs: by arrival only
    speculation: Literal["auto", "off"] = "auto"  # auto: draft tokens where this is faster; needs equal bits, so native
    async_scheduling: bool | None = None  # plan a step while the one before is computed; None: on a GPU
    enforce_eager: bool = False  # on a GPU: launch every kernel by itself, without CUDA graphs
    no_programmatic_launch: bool = False  # on a GPU (9.0 or newer): start no kernel before the one before it has ended
    num_tenants: int = 1  # tenants that share the running slots; with 1, requests run by priority and arrival
    share_prefix_cache: bool = False  # several tenants find each other's blocks in the prefix cache
    rope_theta: float | None = None  # base of the rotary angles; None: from the checkpoint
    sliding_window: Literal["model", "none"] | int = "model"  # "model": from the checkpoint's config
    experts_per_token: int | None = None  # of requests without their own; None: from the checkpoint's config
    lora: dict[str, str] = {}  # directories of LoRA adapters by name
    drop_bad_adapters: bool = False  # start without those that cannot be loaded; of an engine that replaces another
    # Memory of processes and requests, see engine/capacity/memory_share.py. 0: not planned.
    server_bytes: int = 0
    ample_server_bytes: int = 0
    min_server_bytes: int = 0
    step_log: str | None = None  # file that gets a line for each step; of the process, not of LocalEngine
    check_integrity: bool = False  # audit the block pool after every step (tests)

    @property
    def ranks_per_host(self) -> int:
        """Number of ranks on each host."""
        return self.tensor_parallel_size // self.nnodes

    @property
    def ranks_of_host(self) -> range:
        """Ranks of this host."""
        first = self.node_rank * self.ranks_per_host
        return range(first, first + self.ranks_per_host)

    @property
    def rank(self) -> int:
        """Number of this rank among those of all hosts."""
        return self.ranks_of_host.start + self.local_rank


def max_slots_per_tenant(num_slots: int) -> int:
    """Return how many of the running slots one tenant may take: 224 of 256, 3 of 4, 1 of 1."""
    return max(1, num_slots - max(1, num_slots // SLOTS_PER_RESERVED))
