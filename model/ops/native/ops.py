"""The CPU backend: the C++ of model/native. Float32 and bfloat16, with weights of the same kind, int8 or int4; a row's
result depends on that row alone.

What is a product or a reduction happens in the library, in an order that is fixed for each instruction set. Torch
holds the memory, gathers rows and adds the residuals: that is exact, or rounds each number by itself.
Shape letters as in model/ops/interface.py.
"""

from collections.abc import Iterable
from ctypes import c_uint64
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig
from model.forward_batch import ForwardBatch
from model.ops.huge_pages import empty
from model.ops.interface import FfnWeights, RoutingRequest
from model.ops.native.library import ISAS, NativeLibrary, NativeUnavailableError, ThreadPool
from model.ops.native.sampling import sampling_arguments
from model.ops.native.structs import NetworkArguments, StepArguments
from model.ops.quantization import Quantization
from model.sampling_batch import SampledRows, SamplingRows

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # int8: of KV caches
NUMERICS = 2  # counts up when a kernel's bits change
QUANTIZED_FORMATS: dict[Quantization, int] = {"int8": 2, "int4": 3}  # an unquantised weight's format is its dtype


@dataclass(frozen=True)
class NativeLinear:
    """A packed [O, D] matrix."""

    panels: Tensor  # bytes
    format: int
    num_outputs: int
    num_inputs: int


@dataclass(frozen=True)
class NativeExperts:
    """E packed SwiGLU FFNs one after the other; a dense layer's is a single one."""

    w13: Tensor  # bytes
    w2: Tensor  # bytes
    format: int
    num_experts: int
    dim: int
    hidden_dim: int


@dataclass(frozen=True)
class NativeMoe:
    """The gate is kept in float32: which experts a token gets should not hang on its rounding."""

    gate: Tensor  # [E, D] float32
    experts: NativeExperts


@dataclass(frozen=True)
class NativePlan:
    """One batch's rotary angles and block tables."""

    batch: ForwardBatch
    cos: Tensor  # [T, K/2] float32
    sin: Tensor  # [T, K/2] float32
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    window: int  # 0: none


class NativeOps:
    """Implements model.ops.Ops for tensors on the CPU. One caller at a time."""

    def __init__(
        self, library: NativeLibrary, threads: int, isa: str | None = None, quantization: Quantization = "none"
    ) -> None:
        """`isa` None: the fastest that this CPU runs. `quantization`: of the weights that it packs; it computes with
        whatever they were packed to. Raises NativeUnavailableError."""
        available = library.isas()
        self.isa = isa or available[-1]
        if self.isa not in available:
            raise NativeUnavailableError(f"no {self.isa} kernels here; there are {', '.join(available)}")
        self.threads = threads
        self._quantization = quantization
        self._call = library.call
        self._isa = ISAS.index(self.isa)
        self._owner = ThreadPool(library, threads)
        self._pool = self._owner.handle

    def beat_in(self, counter: c_uint64) -> None:
        """From now on the kernels move this counter on while they work."""
        self._heartbeat = counter  # the library keeps its address
        self._call.smoe_pool_heartbeat(self._pool, counter)

    def pack_linear(self, weight: Tensor) -> NativeLinear:
        num_outputs, num_inputs = weight.shape
        code, weight = self._format(weight.dtype), weight.contiguous()
        panels = empty(self._call.smoe_packed_size(code, num_outputs, num_inputs), torch.uint8)
        addresses = weight.data_ptr(), panels.data_ptr()
        self._call.smoe_pack(self._pool, self._isa, DTYPES[weight.dtype], code, *addresses, num_outputs, num_inputs)
        return NativeLinear(panels, code, num_outputs, num_inputs)

    def pack_ffn(self, weights: FfnWeights) -> NativeExperts:
        return self._pack_experts(1, iter([weights]))

    def pack_moe(self, gate: Tensor, experts: Iterable[FfnWeights]) -> NativeMoe:
        return NativeMoe(gate.float().contiguous(), self._pack_experts(len(gate), experts))

    def prepare_batch(self, config: ModelConfig, batch: ForwardBatch, block_size: int) -> NativePlan:
        num_pairs = config.head_dim // 2
        frequencies = inverse_frequencies(config.head_dim, config.rope_theta)  # [K/2]
        cos, sin = torch.empty(2, len(batch.positions), num_pairs).unbind()
        addresses = (tensor.data_ptr() for tensor in (batch.positions, frequencies, cos, sin))
        self._call.smoe_rotary_angles(self._pool, self._isa, *addresses, len(cos), config.head_dim)
        return NativePlan(
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

    def linear(self, x: Tensor, weight: NativeLinear) -> Tensor:
        return self._multiply(x, weight, x.dtype)  # [T, O]

    def rope_and_store_kv(self, qkv: Tensor, k_cache: Tensor, v_cache: Tensor, plan: NativePlan) -> Tensor:
        q = torch.empty(len(qkv), plan.num_heads, plan.head_dim, dtype=qkv.dtype)
        tensors = qkv, q, k_cache, v_cache, plan.cos, plan.sin, plan.batch.slot_mapping
        addresses = (tensor.data_ptr() for tensor in tensors)
        sizes = len(qkv), plan.num_heads, plan.num_kv_heads, plan.head_dim
        dtypes = DTYPES[qkv.dtype], DTYPES[k_cache.dtype]
        check(self._call.smoe_rope_and_store_kv(self._pool, self._isa, *dtypes, *addresses, *sizes))
        return q  # [T, H, K]

    def attention(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: NativePlan) -> Tensor:
        batch = plan.batch
        out = torch.empty(len(q), plan.num_heads * plan.head_dim, dtype=q.dtype)
        tensors = q, k_cache, v_cache, out, batch.query_start, batch.context_len, batch.block_tables
        addresses = (tensor.data_ptr() for tensor in tensors)
        sizes = *batch.block_tables.shape, plan.block_size, plan.num_heads, plan.num_kv_heads, plan.head_dim
        dtypes = DTYPES[q.dtype], DTYPES[k_cache.dtype]
        check(self._call.smoe_attention(self._pool, self._isa, *dtypes, *addresses, *sizes, plan.window))
        return out  # [T, H * K]

    def ffn(self, x: Tensor, weights: NativeExperts) -> Tensor:
        y = torch.empty_like(x)
        addresses = x.data_ptr(), weights.w13.data_ptr(), weights.w2.data_ptr(), y.data_ptr()
        sizes = len(x), weights.dim, weights.hidden_dim
        check(self._call.smoe_ffn(self._pool, self._isa, DTYPES[x.dtype], weights.format, *addresses, *sizes))
        return y  # [T, D]

    def moe(self, x: Tensor, weights: NativeMoe, choice: RoutingRequest) -> Tensor:
        y, experts = torch.empty_like(x), weights.experts
        tensors = x, weights.gate, experts.w13, experts.w2, y, choice.experts_per_token
        addresses = (tensor.data_ptr() for tensor in tensors)
        allowed = None if choice.allowed is None else choice.allowed.data_ptr()
        sizes = len(x), experts.dim, experts.hidden_dim, experts.num_experts, choice.expert_ids.shape[1]
        routing = allowed, choice.expert_ids.data_ptr()
        dtypes = DTYPES[x.dtype], experts.format
        check(self._call.smoe_moe(self._pool, self._isa, *dtypes, *addresses, *routing, *sizes))
        return y  # [T, D]

    def logits(self, x: Tensor, rows: Tensor, norm: Tensor, eps: float, head: NativeLinear) -> Tensor:
        return self._multiply(self.rms_norm(x.index_select(0, rows), norm, eps), head, torch.float32)  # [N, V]

    def sample(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        num_rows, count = len(logits), max(0, rows.max_logprobs)
        result = SampledRows(
            token_ids=torch.empty(num_rows, dtype=torch.int64),
            status=torch.empty(num_rows, dtype=torch.uint8),
            logprob=torch.zeros(num_rows),
            top_ids=torch.zeros(num_rows, count, dtype=torch.int32),
            top_logprobs=torch.zeros(num_rows, count),
        )
        check(self._call.smoe_sample(self._pool, self._isa, sampling_arguments(logits, rows, result)))
        return result

    def forward(self, network: NetworkArguments, step: StepArguments) -> None:
        """All layers of a step in one call; writes what the arguments point to."""
        check(self._call.smoe_forward(self._pool, self._isa, network, step))

    def read_all(self, buffer: Tensor) -> int:
        """Reads a buffer once, on all threads; the sum of its 32-bit words and last bytes, modulo 2^32."""
        return int(self._call.smoe_read_all(self._pool, self._isa, buffer.data_ptr(), buffer.nbytes))

    def peak_operations(self, arithmetic: int, rounds: int) -> int:
        """Multiplies in registers for a while; how many operations that were. 0 float32, 1 bfloat16, 2 int8."""
        return int(self._call.smoe_peak_operations(self._pool, self._isa, arithmetic, rounds))

    def _multiply(self, x: Tensor, weight: NativeLinear, dtype: torch.dtype) -> Tensor:
        y = torch.empty(len(x), weight.num_outputs, dtype=dtype)
        addresses = x.data_ptr(), weight.panels.data_ptr(), y.data_ptr()
        sizes = len(x), weight.num_outputs, weight.num_inputs
        is_wide = dtype == torch.float32
        dtypes = DTYPES[x.dtype], weight.format
        check(self._call.smoe_linear(self._pool, self._isa, *dtypes, *addresses, *sizes, is_wide))
        return y  # [T, O]

    def _pack_experts(self, num_experts: int, experts: Iterable[FfnWeights]) -> NativeExperts:
        """The first expert tells the sizes. No name keeps an expert while the next is read."""
        iterator = iter(experts)
        packed = self._pack_expert(None, 0, num_experts, next(iterator))
        for index in range(1, num_experts):
            self._pack_expert(packed, index, num_experts, next(iterator))
        return packed

    def _pack_expert(
        self, packed: NativeExperts | None, index: int, num_experts: int, weights: FfnWeights
    ) -> NativeExperts:
        (hidden_dim, dim), dtype = weights.w1.shape, DTYPES[weights.w1.dtype]
        code = self._format(weights.w1.dtype)
        w13_size = self._call.smoe_packed_pair_size(code, hidden_dim, dim)
        w2_size = self._call.smoe_packed_size(code, dim, hidden_dim)
        if packed is None:
            w13, w2 = (empty(num_experts * size, torch.uint8) for size in (w13_size, w2_size))
            packed = NativeExperts(w13, w2, code, num_experts, dim, hidden_dim)
        w1, w3, w2 = (weight.contiguous() for weight in (weights.w1, weights.w3, weights.w2))
        up = w1.data_ptr(), w3.data_ptr(), packed.w13[index * w13_size :].data_ptr()
        down = w2.data_ptr(), packed.w2[index * w2_size :].data_ptr()
        self._call.smoe_pack_pair(self._pool, self._isa, dtype, code, *up, hidden_dim, dim)
        self._call.smoe_pack(self._pool, self._isa, dtype, code, *down, dim, hidden_dim)
        return packed

    def _format(self, dtype: torch.dtype) -> int:
        return QUANTIZED_FORMATS.get(self._quantization, DTYPES[dtype])


def inverse_frequencies(head_dim: int, theta: float) -> Tensor:
    """theta^(-2i/K) for pair i, [K/2] float32; in steps of float32, as Hugging Face's own code has it."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    powers = torch.tensor([theta**exponent for exponent in exponents.tolist()], dtype=torch.float32)
    return 1.0 / powers


def check(result: int) -> None:
    """Raises MemoryError for what the library's functions return where memory is short."""
    if result:
        raise MemoryError("no memory for the intermediate results of a step")
