"""The CPU backend: calls the C++ kernels of model/native. A row's result depends on that row alone.

Activations are float32 or bfloat16; weights are of the same dtype, int8, int4 or in the blocks of a GGUF file. Products
and reductions run in the library, in an order that is fixed for each instruction set. Torch holds the memory, gathers
rows and adds the residuals: these operations are exact or round each number by itself. Shape letters as in
model/ops/interface.py.
"""

from collections.abc import Iterable
from ctypes import c_uint64
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from model.config import ModelConfig
from model.cut import PANEL
from model.forward_batch import ForwardBatch
from model.group import ALONE, Group, GroupEndedError
from model.kv_format import TILE, KvDtype, KvLayout
from model.lora.rows import AdapterRows, RowTerms
from model.ops.interface import FfnWeights, RoutingRequest
from model.ops.native.adapters import AdapterAddresses, pointer
from model.ops.native.expert_store import READ_FAILED, ExpertStore, Read, StoredExperts
from model.ops.native.group import ENDED, LibraryGroup, SharedGroup, SocketGroup
from model.ops.native.library import ISAS, NativeLibrary, NativeUnavailableError, ThreadPool
from model.ops.native.packed_weights import (
    BLOCK_FORMATS,
    DTYPES,
    KV_DTYPES,
    NativeExperts,
    NativeLinear,
    NativeMoe,
    WeightPacker,
)
from model.ops.native.sampling import PreparedSampling, prepared_sampling
from model.ops.native.structs import NetworkArguments, StepArguments
from model.ops.quantization import Quantization
from model.ops.weights import Weight
from model.sampling_batch import SampledRows, SamplingRows

NUMERICS = 7  # incremented when a kernel's bits change


@dataclass(frozen=True)
class NativeMetadata:
    """Rotary angles and block tables of one batch."""

    batch: ForwardBatch
    cos: Tensor  # [T, K/2] float32
    sin: Tensor  # [T, K/2] float32
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    window: int  # 0: no window


class NativeOps:
    """Implementation of model.ops.interface.Ops for tensors on the CPU. Not thread-safe: one caller at a time."""

    packs_streams = True

    def __init__(
        self, library: NativeLibrary, threads: int, isa: str | None = None, quantization: Quantization = "none"
    ) -> None:
        """Start the threads. `isa` None selects the fastest instruction set of this CPU.

        `quantization` applies to the weights that this object packs; it computes with weights of any format.
        Raises NativeUnavailableError for an instruction set that library or CPU lack, or if threads cannot start.
        """
        available = library.isas()
        self.isa = isa or library.fastest_isa()
        if self.isa not in available:
            raise NativeUnavailableError(f"{self.isa} kernels are not available here; there are {', '.join(available)}")
        self.threads = threads
        self._library = library
        self._call = library.call
        self._isa = ISAS.index(self.isa)
        self._threads = ThreadPool(library, threads)
        self._pool = self._threads.handle
        self.block_formats = frozenset(BLOCK_FORMATS if quantization == "none" else ())
        self._packer = WeightPacker(library, self._threads, self._isa, quantization)
        self._adapters = AdapterAddresses()
        self._samplings: WeakKeyDictionary[SamplingRows, PreparedSampling] = WeakKeyDictionary()

    def set_heartbeat(self, counter: c_uint64) -> None:
        """Let the kernels increment `counter` while they work, from now on."""
        self._heartbeat = counter  # the library keeps its address
        self._call.smoe_pool_heartbeat(self._pool, counter)

    def panel_size(self, code: int, num_inputs: int) -> int:
        """Return the bytes of a panel of PANEL outputs in a format, by its code."""
        return int(self._call.smoe_panel_size(code, num_inputs))

    def store_experts(
        self, experts: StoredExperts, num_slots: int, file: str, source: int | Read, *, in_page_cache: bool = False
    ) -> ExpertStore:
        """Return a store of experts for the library of these kernels; see ExpertStore."""
        return ExpertStore(self._library, experts, num_slots, file, source, in_page_cache=in_page_cache)

    def pack_linear(self, *weights: Weight) -> NativeLinear:
        return self._packer.pack_linear(weights)

    def pack_ffn(self, weights: FfnWeights) -> NativeExperts:
        return self._packer.pack_experts(1, iter([weights]))

    def pack_moe(self, gate: Tensor, experts: Iterable[FfnWeights]) -> NativeMoe:
        return NativeMoe(gate.float().contiguous(), self._packer.pack_experts(len(gate), experts))

    def kv_layout(self, dtype: KvDtype, block_size: int) -> KvLayout:
        return "rows" if dtype == "float32" or block_size % TILE else "tiles"

    def prepare_batch(self, config: ModelConfig, batch: ForwardBatch, block_size: int) -> NativeMetadata:
        num_pairs = config.head_dim // 2
        frequencies = inverse_frequencies(config)  # [K/2]
        cos, sin = torch.empty(2, len(batch.positions), num_pairs).unbind()
        addresses = (tensor.data_ptr() for tensor in (batch.positions, frequencies, cos, sin))
        sizes = len(cos), config.head_dim
        self._call.smoe_rotary_angles(self._pool, self._isa, *addresses, *sizes, config.rope_factor)
        return NativeMetadata(
            batch=batch,
            cos=cos,
            sin=sin,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            block_size=block_size,
            window=config.window or 0,
        )

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        return table.index_select(0, token_ids)  # [T, D]

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y = torch.empty_like(x)
        addresses = x.data_ptr(), weight.data_ptr(), y.data_ptr()
        self._call.smoe_rms_norm(self._pool, self._isa, DTYPES[x.dtype], *addresses, *x.shape, eps)
        return y  # [T, D]

    def add_rms_norm(self, x: Tensor, pending: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total = x + pending
        return total, self.rms_norm(total, weight, eps)  # [T, D] each

    def linear(self, x: Tensor, weight: NativeLinear, terms: RowTerms | None = None) -> Tensor:
        return self._multiply(x, weight, x.dtype, terms)  # [T, O]

    def summed(self, pending: Tensor) -> Tensor:
        return pending

    def rope_and_store_kv(self, qkv: Tensor, k_cache: Tensor, v_cache: Tensor, metadata: NativeMetadata) -> Tensor:
        q = torch.empty(len(qkv), metadata.num_heads, metadata.head_dim, dtype=qkv.dtype)
        tensors = qkv, q, k_cache, v_cache, metadata.cos, metadata.sin, metadata.batch.slot_mapping
        addresses = (tensor.data_ptr() for tensor in tensors)
        sizes = len(qkv), metadata.num_heads, metadata.num_kv_heads, metadata.head_dim, metadata.block_size
        dtypes = DTYPES[qkv.dtype], DTYPES[q.dtype], KV_DTYPES[k_cache.dtype]
        check(self._call.smoe_rope_and_store_kv(self._pool, self._isa, *dtypes, *addresses, *sizes))
        return q  # [T, H, K]

    def attention(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, metadata: NativeMetadata, out_dtype: torch.dtype
    ) -> Tensor:
        batch = metadata.batch
        out = torch.empty(len(q), metadata.num_heads * metadata.head_dim, dtype=out_dtype)
        tensors = q, k_cache, v_cache, out, batch.query_start, batch.context_len, batch.block_tables
        addresses = (tensor.data_ptr() for tensor in tensors)
        sizes = (
            *batch.block_tables.shape,
            metadata.block_size,
            metadata.num_heads,
            metadata.num_kv_heads,
            metadata.head_dim,
        )
        dtypes = DTYPES[q.dtype], DTYPES[out.dtype], KV_DTYPES[k_cache.dtype]
        check(self._call.smoe_attention(self._pool, self._isa, *dtypes, *addresses, *sizes, metadata.window))
        return out  # [T, H * K]

    def ffn(self, x: Tensor, weights: NativeExperts, group: Group = ALONE, terms: RowTerms | None = None) -> Tensor:
        y = x.new_empty(len(x), weights.num_outputs)
        arguments = x.data_ptr(), weights.arguments, y.data_ptr(), len(x), weights.dim, weights.hidden_dim
        kernel = self._pool, self._isa, DTYPES[x.dtype]
        first = group.cut.part(weights.hidden_dim, PANEL).start
        joined = self.in_library(group)
        adapters, first_term = self._adapters.of_terms(terms)
        cut = joined and joined.handle, first
        check(self._call.smoe_ffn(*kernel, *arguments, *cut, pointer(adapters), first_term), joined)
        return y  # [T, D]

    def moe(
        self,
        x: Tensor,
        weights: NativeMoe,
        request: RoutingRequest,
        group: Group = ALONE,
        terms: RowTerms | None = None,
    ) -> Tensor:
        experts = weights.experts
        y = x.new_empty(len(x), experts.num_outputs)
        addresses = x.data_ptr(), weights.gate.data_ptr(), experts.arguments, y.data_ptr()
        allowed = None if request.allowed is None else request.allowed.data_ptr()
        routing = request.experts_per_token.data_ptr(), allowed, request.expert_ids.data_ptr()
        sizes = len(x), experts.dim, experts.hidden_dim, experts.num_experts, request.expert_ids.shape[1]
        kernel = self._pool, self._isa, DTYPES[x.dtype]
        first = group.cut.part(experts.hidden_dim, PANEL).start
        joined = self.in_library(group)
        in_group = joined and joined.handle, first
        stored = experts.store and experts.store.handle, experts.stored_layer
        adapters, first_term = self._adapters.of_terms(terms)
        end = *in_group, *stored, pointer(adapters), first_term
        check(self._call.smoe_moe(*kernel, *addresses, *routing, *sizes, *end), joined, experts.store)
        return y  # [T, D]

    def adapter_addresses(self, rows: AdapterRows | None) -> Tensor | None:
        """Return the addresses of a step's adapters, [T], for StepArguments; None if no row has one."""
        return None if rows is None else self._adapters.of_rows(rows)

    def in_library(self, group: Group) -> LibraryGroup | None:
        """Return the group for calls of the library; None for a single rank."""
        if group.cut.size == 1:
            return None
        assert isinstance(group, SharedGroup | SocketGroup), "the library gathers only over memory and sockets"
        return group

    def add_norm_moe(
        self,
        x: Tensor,
        pending: Tensor,
        norm: Tensor,
        eps: float,
        weights: NativeMoe,
        request: RoutingRequest,
        group: Group = ALONE,
        terms: RowTerms | None = None,
    ) -> tuple[Tensor, Tensor]:
        total, normed = self.add_rms_norm(x, pending, norm, eps)
        return total, self.moe(normed, weights, request, group, terms)  # [T, D] each

    def gate_logits(self, x: Tensor, weights: NativeMoe) -> Tensor:
        num_experts, dim = weights.gate.shape
        logits = torch.empty(len(x), num_experts)
        addresses = x.data_ptr(), weights.gate.data_ptr(), logits.data_ptr()
        self._call.smoe_gate_logits(self._pool, DTYPES[x.dtype], *addresses, len(x), dim, num_experts)
        return logits  # [T, E]

    def logits(self, x: Tensor, rows: Tensor, head: NativeLinear) -> Tensor:
        return self._multiply(x.index_select(0, rows), head, torch.float32)  # [N, V]

    def sample(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        """Sample, like Ops.sample. For the same logits and rows as in the rows' last call, which then have new numbers,
        the result is overwritten."""
        prepared = self._samplings.get(rows)
        if prepared is None or prepared.logits() is not logits:
            prepared = self._samplings[rows] = prepared_sampling(logits, rows)
        check(self._call.smoe_sample(self._pool, self._isa, prepared.arguments))
        return prepared.result

    def forward(
        self, network: NetworkArguments, step: StepArguments, group: LibraryGroup | None, store: ExpertStore | None
    ) -> None:
        """Compute all layers of a step in one call; writes to the addresses in the arguments. Group and store are the
        network's.

        Raises GroupEndedError and ExpertReadError.
        """
        check(self._call.smoe_forward(self._pool, self._isa, network, step), group, store)

    def read_all(self, buffer: Tensor) -> int:
        """Read a buffer once, on all threads; return the sum of its 32-bit words and last bytes, modulo 2^32."""
        return int(self._call.smoe_read_all(self._pool, self._isa, buffer.data_ptr(), buffer.nbytes))

    def peak_operations(self, arithmetic: int, rounds: int) -> int:
        """Multiply in registers for `rounds` rounds; return the number of operations (0: not supported).

        `arithmetic`: 0 float32, 1 bfloat16, 2 int8.
        """
        return int(self._call.smoe_peak_operations(self._pool, self._isa, arithmetic, rounds))

    def _multiply(self, x: Tensor, weight: NativeLinear, dtype: torch.dtype, terms: RowTerms | None = None) -> Tensor:
        y = torch.empty(len(x), weight.num_outputs, dtype=dtype)
        matrices = weight.arguments, len(weight.matrices)
        sizes = len(x), weight.num_inputs, dtype == torch.float32
        kernel = self._pool, self._isa, DTYPES[x.dtype]
        adapters, first_term = self._adapters.of_terms(terms)
        low_rank = pointer(adapters), first_term, terms.count if terms else 0
        check(self._call.smoe_linear(*kernel, x.data_ptr(), *matrices, y.data_ptr(), *sizes, *low_rank))
        return y  # [T, O]


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Return theta^(-2i/K) / divisor i for each pair i, [K/2] float32, rounded step by step as Hugging Face's code
    does."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    powers = torch.tensor([config.rope_theta**exponent for exponent in exponents.tolist()], dtype=torch.float32)
    frequencies = 1.0 / powers
    return (
        frequencies / torch.tensor(config.rope_divisors, dtype=torch.float32) if config.rope_divisors else frequencies
    )


def check(result: int, group: LibraryGroup | None = None, store: ExpertStore | None = None) -> None:
    """Raise why the group ended or the store failed if a library function returned 2 or 3, and MemoryError if it
    returned 1."""
    if result == ENDED:
        raise group.failure() if group else GroupEndedError
    if result == READ_FAILED and store is not None:
        raise store.failure()
    if result:
        raise MemoryError("not enough memory for the intermediate results of a step")
