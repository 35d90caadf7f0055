"""Settings of `smoe serve`: the one place where a flag, its default, its accepted values and its meaning are written.

A field of `Settings` defines the flag (`--max-model-len`), the variable (`SMOE_MAX_MODEL_LEN`), the YAML key, the help
text and the line in docs/configuration.md. `server.settings.sources` fills the fields.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.model_files.location import model_id
from server.settings.sampling_defaults import SamplingDefaults
from server.settings.value_types import (
    MAX_COUNT,
    ApiKeyFile,
    Bytes,
    Count,
    DistinctNames,
    File,
    FileOrPipe,
    HostNames,
    HttpUrl,
    LogLevel,
    LoraPaths,
    Names,
    RootPath,
    SocketPath,
    TokenCount,
)

PREFIX = "SMOE_"  # of environment variables

# Titles for the help and the docs, by the first field of each group. A group ends where the next one begins.
GROUPS = {
    "model": "Model and tokenizer",
    "strict_params": "Requests",
    "host": "Network and access",
    "max_num_queued_reqs": "Queue and shutdown",
    "device": "Device and numerics",
    "max_model_len": "Batching and scheduling",
    "kv_cache_memory_bytes": "KV cache",
    "metrics_compat": "Metrics and logs",
}


@dataclass(frozen=True)
class DefaultText:
    """Text of a default for help and docs, if the value (None, or a number of bytes) does not explain itself."""

    text: str


def flag_name(name: str) -> str:
    """Return the flag of the setting `name`: max_model_len is --max-model-len."""
    return f"--{name.replace('_', '-')}"


class Settings(BaseModel):
    """Validated settings of one server. None means: derived from the checkpoint or the machine at start."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str | None, DefaultText("the bundled demo model")] = Field(
        None,
        description="Directory of a checkpoint, GGUF file, org/name of a model in the local Hugging Face cache, or "
        "name of a GGUF file in that cache, in LM Studio or in Ollama, such as org/name:Q4_K_M or mixtral:8x7b.",
    )
    verify: bool = Field(
        False,
        description="Before serving, check the files against their SHA256SUMS, and all weights for NaN and infinity.",
    )
    served_model_name: Annotated[DistinctNames, DefaultText("the model's name")] = Field(
        (), description="Model name that clients may use. The first one is the id in responses."
    )
    lora: LoraPaths = Field(
        (),
        description="LoRA adapter as PEFT saves it, NAME=DIR: requests whose model is NAME get the model with the "
        "adapter in DIR. On CPUs.",
    )
    enable_runtime_lora: bool = Field(
        False,
        description="Answer /v1/load_lora_adapter and /v1/unload_lora_adapter. Whoever may send requests may then let "
        "the server read adapters from any directory.",
    )
    chat_template: Annotated[FileOrPipe | None, DefaultText("the checkpoint's template")] = Field(
        None, description="Jinja file with the chat template."
    )
    generation_config: Literal["auto", "none"] = Field(
        "auto",
        description="Default sampling parameters: auto reads the checkpoint's generation_config.json, or a GGUF file's "
        "general.sampling fields; none ignores them.",
    )
    override_generation_config: SamplingDefaults = Field(
        {},
        description='Sampling parameters of requests that name none, as JSON: {"temperature": 0.7, "top_p": 0.9}. They '
        "come before the checkpoint's.",
    )

    strict_params: bool = Field(
        False,
        description="Reject unknown request fields, and tool schemas that cannot be enforced completely, with 400. "
        "Otherwise they are ignored and listed in the header x-smoe-ignored-params.",
    )
    strict_roles: bool = Field(
        False,
        description="Reject chats with 400 if their roles do not alternate. Otherwise they are repaired, and "
        "the header x-smoe-repaired names the repairs.",
    )
    embeddings: bool = Field(
        False,
        description="Answer /v1/embeddings, /v1/score and /v1/rerank also with a model that was not trained for "
        "embeddings, by the hidden state of the last token.",
    )
    tool_emulation: bool = Field(
        False,
        description='Allow tool_choice "auto" for models without tool tokens: the prompt describes the tools in words.',
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 selects a free one.")
    uds: SocketPath | None = Field(
        None, description="Path of a Unix socket to listen on, in place of --host and --port."
    )
    api_key: Annotated[DistinctNames, DefaultText("no authentication")] = Field(
        (), repr=False, description="Key that clients must send."
    )
    api_key_file: ApiKeyFile = Field(
        None,
        description="File with keys that clients must send, besides those of --api-key: one per line. Blank lines and "
        "lines that start with # are ignored.",
    )
    allowed_origins: Names = Field(
        (), description="Origin of web pages, besides the server's own, that may send requests (CORS); * accepts all."
    )
    allowed_hosts: Annotated[HostNames, DefaultText("none on a loopback address, all elsewhere")] = Field(
        (),
        description="Name that the Host of requests may have, besides localhost and the address of --host; * accepts "
        "all. Other requests get 403.",
    )
    root_path: RootPath = Field("", description="Path prefix that a reverse proxy adds.")
    ssl_keyfile: File | None = Field(None, description="File with the TLS key, to serve HTTPS. Needs the certificate.")
    ssl_certfile: File | None = Field(
        None, description="File with the TLS certificate, to serve HTTPS. Needs the key too."
    )
    max_body_bytes: Annotated[Bytes, DefaultText("1MiB")] = Field(
        1 << 20, description="Maximum size of a request body."
    )

    batch_dir: Annotated[Path | None, DefaultText("none: their URLs are a 404")] = Field(
        None,
        description="Directory for the files and the state of /v1/files and /v1/batches, which it enables. Created if "
        "absent.",
    )
    max_batch_file_bytes: Annotated[Bytes, DefaultText("100MiB")] = Field(
        100 << 20,
        description="Maximum size of a file that is uploaded for a batch, with --batch-dir. Each of its lines has at "
        "most --max-body-bytes.",
    )
    batch_retention_days: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="Days that a batch and its results are kept after its end, with --batch-dir. Of each API key the "
        "newest 1,000 are kept at most. Uploaded files stay until they are deleted.",
    )
    request_memory_bytes: Annotated[
        Bytes | None, DefaultText("an eighth of the memory limit, from 32MiB to 2GiB; less if memory is short")
    ] = Field(
        None,
        description="Memory for the bodies of all requests and what is parsed from them; as much again for replies "
        "with log probabilities. Bodies beyond it wait, then get 503; replies beyond it get 429.",
    )

    max_num_queued_reqs: Count = Field(
        1024, description="Requests that may wait for their first step. Further ones get 429."
    )
    max_num_queued_tokens: Annotated[
        Count | None, DefaultText("1024 times --max-num-queued-reqs; fewer if memory is short")
    ] = Field(None, description="Prompt tokens that may wait for their first step. Further requests get 429.")
    keep_alive_timeout: Count = Field(
        75,
        description="Seconds that an idle connection stays open for a next request. Load balancers need a longer time "
        "than their own, which is often 60.",
    )
    shutdown_timeout: float = Field(
        60.0, ge=0, allow_inf_nan=False, description="Seconds that running requests get to finish after SIGTERM."
    )
    reload_timeout: float = Field(
        600.0,
        ge=0,
        allow_inf_nan=False,
        description="After SIGHUP: seconds that the new process gets to become ready, and then seconds that running "
        "requests get to finish in the old one.",
    )

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device that runs the model; auto prefers a GPU."
    )
    backend: Literal["auto", "reference", "native", "triton"] = Field(
        "auto",
        description="Kernels: native is C++ for CPUs, triton is for GPUs, reference is slow plain torch. auto selects "
        "native on a CPU and triton on a GPU.",
    )
    deterministic: bool = Field(
        False, description="On a GPU, compute the same bits for a request in any batch. A CPU always does."
    )
    isa: Literal[
        "auto", "portable", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx", "neon", "neonbf16"
    ] = Field("auto", description="Instruction set of the native backend; auto selects the fastest that the CPU has.")
    threads: Annotated[Count | None, DefaultText("one per core")] = Field(
        None,
        description="CPU threads of the engine; with --tensor-parallel-size of each rank, which share the cores by "
        "default.",
    )
    tensor_parallel_size: Count = Field(
        1,
        description="Processes (ranks) that share the model, each with a part of every matrix: on CPUs with threads of "
        "its own, on GPUs with a GPU each. On CPUs the tokens are the same. Must divide the model's KV heads.",
    )
    first_gpu: int = Field(
        0,
        ge=0,
        le=MAX_COUNT,
        description="Index of the GPU of this host's first rank; its other ranks use the next ones.",
    )
    nnodes: Count = Field(
        1,
        description="Hosts among which the ranks of --tensor-parallel-size are divided. Start smoe on each of them "
        "with the same sizes.",
    )
    node_rank: int = Field(
        0,
        ge=0,
        le=MAX_COUNT,
        description="Which of the --nnodes hosts this is. Host 0 answers requests, the others compute for it.",
    )
    master_addr: str = Field(
        "", description="Address of host 0 that all hosts reach, on a private network: whoever reaches it can join."
    )
    master_port: int = Field(29500, ge=1, le=65535, description="Port of host 0 at which the other hosts join.")
    group_timeout: float = Field(
        20.0,
        ge=2,
        le=600,
        description="Seconds after which a host that does not answer on the network is lost; all ranks start again.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Type of weights and activations; auto uses the checkpoint's."
    )
    quantization: Literal["none", "lossless", "int8", "int4", "fp8"] = Field(
        "none",
        description="Make the weights smaller while loading them. lossless (CPU) needs three quarters of bfloat16's "
        "memory and changes no bit. int8 needs a half, as fp8 does (GPU), and int4 a quarter (CPU); they are faster.",
    )
    weights_memory: Literal["auto", "map", "copy", "lock"] = Field(
        "auto",
        description="Memory of a pack's weights (smoe pack): map uses the file's pages, which servers share and the "
        "system may drop and read again; copy reads them into the server's own memory; lock keeps mapped pages in "
        "memory. auto is map for packs; other checkpoints are always in own memory.",
    )
    expert_memory: Annotated[Bytes | Literal["auto"] | None, DefaultText("room for all experts")] = Field(
        None,
        description="Memory for the experts of a pack that is larger than memory, such as 16GiB; the other experts are "
        "read from the disk when a step needs them. auto takes what is left beside other weights, KV cache and "
        "requests. The tokens are the same.",
    )
    experts_per_token: Annotated[Count | None, DefaultText("the checkpoint's number")] = Field(
        None, description="Experts per token for requests that do not set experts_per_token."
    )
    rope_theta: Annotated[float | None, DefaultText("the checkpoint's")] = Field(
        None,
        gt=0,
        le=1e12,
        description="Base of the rotary angles. Needed for early GGUF files of Mixtral, which lack it: 1000000.",
    )
    sliding_window: Literal["model", "none"] | Count = Field(
        "model", description="Attention window in tokens: model uses the checkpoint's, none disables it."
    )
    seed: Annotated[int | None, DefaultText("random")] = Field(
        None, description="Makes the seeds that the server draws for requests without one repeatable."
    )

    max_model_len: Annotated[TokenCount | None, DefaultText("as long as the model and the KV cache allow")] = Field(
        None, description="Maximum length of prompt plus completion, in tokens. 32K is 32768, 32k is 32000."
    )
    max_num_seqs: Count = Field(256, description="Maximum number of requests in one step.")
    max_num_batched_tokens: Annotated[TokenCount | None, DefaultText("about 0.5 s of work on a CPU, 2048 on a GPU")] = (
        Field(None, description="Maximum number of tokens in one step.")
    )
    scheduling_policy: Literal["priority", "fcfs"] = Field(
        "priority",
        description="Order of waiting requests: by shares among API keys, then by priority (lower first) and arrival; "
        "or by arrival alone.",
    )
    async_scheduling: Annotated[bool | None, DefaultText("on for a single GPU, else off")] = Field(
        None, description="Plan a step while the previous one is computed. The tokens are the same."
    )
    speculation: Literal["auto", "off"] = Field(
        "auto",
        description="On a CPU, guess the next tokens from the request's own text where this is faster, and verify them "
        "in one step. The tokens are the same.",
    )
    enforce_eager: bool = Field(
        False, description="On a GPU, launch every kernel by itself, without CUDA graphs. Slower; for finding faults."
    )
    no_programmatic_launch: bool = Field(
        False,
        description="On a GPU of compute capability 9.0 or newer, start each kernel only when the one before it has "
        "ended. For finding faults.",
    )

    kv_cache_memory_bytes: Annotated[
        Bytes | None,
        DefaultText("half of the memory left after the weights; on a GPU most of it"),
    ] = Field(None, description="Size of the KV cache, such as 4GiB. The default is smaller if memory is short.")
    num_kv_blocks: Annotated[Count | None, DefaultText("derived from the size")] = Field(
        None, description="Size of the KV cache in blocks, instead of bytes."
    )
    block_size: int = Field(
        16,
        ge=1,
        le=1024,
        description="Tokens per block of the KV cache. On a CPU attention is fastest with a multiple of 16.",
    )
    kv_cache_dtype: Literal["auto", "bf16", "int8"] = Field(
        "auto",
        description="Type of stored keys and values: auto is the type that they are computed in; int8 needs half the "
        "memory of bf16.",
    )
    no_enable_prefix_caching: bool = Field(
        False, description="Compute every prompt completely, without reusing the KV cache of equal prefixes."
    )
    share_prefix_cache: bool = Field(
        False,
        description="Let API keys find each other's prefixes in the KV cache. A client can then infer whether the "
        "beginning of a prompt was sent with another key.",
    )

    metrics_compat: Literal["vllm", "none"] = Field(
        "vllm", description="Metric names: vllm adds vLLM's to smoe's own, none does not."
    )
    metrics_auth: bool = Field(False, description="Require an API key for /metrics and /metrics/load too.")
    otlp_traces_endpoint: HttpUrl | None = Field(
        None,
        description="URL of an OpenTelemetry collector (OTLP over HTTP, such as http://127.0.0.1:4318) that gets a "
        "trace of each request, never its text. Needs the extra otel.",
    )
    step_log: Annotated[Path | None, DefaultText("none")] = Field(
        None,
        description="File to which the engine appends a JSON line for each step: its time and how much it computed, "
        "never text. For measurements; it grows without limit.",
    )
    watch_event_loop: bool = Field(
        False, description="Log the stack of whatever blocks the event loop of the API process for more than 50 ms."
    )
    log_level: LogLevel = Field("info", description="Least severe log level shown.")
    log_format: Literal["text", "json"] = Field(
        "text", description="Format of the log: one line per request that generates or fails, never its text."
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> "Settings":
        if self.num_kv_blocks is not None and self.kv_cache_memory_bytes is not None:
            raise ValueError("--num-kv-blocks and --kv-cache-memory-bytes exclude each other: give one")
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ValueError("--ssl-keyfile and --ssl-certfile need each other: give both")
        if len(set(self.api_keys)) != len(self.api_keys):
            raise ValueError("--api-key-file: has the same key twice, or one of --api-key")
        if self.lora and (both := self.adapter_directories.keys() & set(self.model_names)):  # names: a look at the disk
            raise ValueError(f"--lora {min(both)}: the model itself has this name; choose another for the adapter")
        if self.metrics_auth and not self.api_keys:
            raise ValueError("--metrics-auth needs an --api-key or --api-key-file to require")
        self._check_hosts()
        return self

    def _check_hosts(self) -> None:
        nodes, ranks = self.nnodes, self.tensor_parallel_size
        if self.node_rank >= nodes:
            raise ValueError(f"--node-rank {self.node_rank}: should be less than --nnodes, which is {nodes}")
        if nodes > 1 and not self.master_addr:
            raise ValueError(f"--nnodes {nodes} needs --master-addr: an address of the host with --node-rank 0")
        if ranks % nodes:
            raise ValueError(
                f"--nnodes {nodes} needs a --tensor-parallel-size that it divides, such as {nodes}; it is {ranks}"
            )

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the model itself, by which requests ask for it."""
        return self.served_model_name or (model_id(self.model),)

    @property
    def adapter_directories(self) -> dict[str, Path]:
        """Directories of the LoRA adapters by name."""
        return {name: Path(directory) for name, _, directory in (pair.partition("=") for pair in self.lora)}

    @property
    def api_keys(self) -> tuple[str, ...]:
        """All keys that clients may send; without any there is no authentication."""
        return self.api_key + (self.api_key_file.keys if self.api_key_file else ())
