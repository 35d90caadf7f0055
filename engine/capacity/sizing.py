"""Limits of an engine from model, machine and settings: KV pool size, context length, token budget. No torch.

The engine and `smoe plan` both use it, so that the plan equals the engine's sizes.
"""

from dataclasses import dataclass
from math import ceil

from engine.capacity.machine.host_resources import format_bytes
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.scheduling.blocks.geometry import BlockGeometry
from model.config import ModelConfig
from model.kv_format import KvDtype

SHARE_OF_FREE_MEMORY = 0.5  # of the memory left after the weights, unless the user sets a size
SHARE_BESIDE_EVICTABLE = 8  # of the free memory at least one of so many parts is not for weights that may be dropped
DEFAULT_GPU_BUDGET = 2048
MAX_CPU_BUDGET = 2048
MIN_CPU_BUDGET = 32
BLOCKS = "own blocks"  # the format of weights that stay quantized as they are stored
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}  # of each served dtype
EXAMPLE_LENGTHS = (512, 4096, 32768)  # tokens; lengths for which a memory plan shows the capacity


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Effective limits of one engine."""

    num_blocks: int  # usable blocks, without the null block
    max_model_len: int
    max_num_batched_tokens: int
    warnings: tuple[str, ...] = ()
    memory_share: float = 1.0  # of the usual memory for KV cache and requests, see memory_share.py

    @property
    def max_prompt_tokens(self) -> int:
        return self.max_model_len - 1


def served_dtype(config: EngineConfig, model: ModelConfig) -> str:
    """Return the dtype of weights and activations, one of ELEMENT_BYTES: the user's choice, or else the checkpoint's;
    float16 checkpoints run in bfloat16. Raises EngineConfigError if the quantization is for another dtype."""
    name = model.dtype if config.dtype == "auto" else config.dtype
    if config.quantization == "lossless" and name == "float32":
        raise EngineConfigError("--quantization lossless is for bfloat16, not for float32: add --dtype bfloat16")
    return name if name in ELEMENT_BYTES else "bfloat16"


def served_kv_dtype(config: EngineConfig, model: ModelConfig) -> KvDtype:
    """Return the storage dtype of K and V: the user's choice, or else the computed dtype."""
    if config.kv_cache_dtype == "int8":
        return "int8"
    computed = served_dtype(config, model)
    return "float32" if config.kv_cache_dtype == "auto" and computed == "float32" else "bfloat16"


def kv_block_bytes(config: EngineConfig, model: ModelConfig) -> int:
    """Bytes of one block: K and V of all layers."""
    return config.block_size * model.kv_bytes_per_token(served_kv_dtype(config, model))


def weight_kind(config: EngineConfig, model: ModelConfig, *, is_in_blocks: bool) -> str:
    """Return the format of most weights: float32, bfloat16, lossless, int8, int4, fp8 or BLOCKS."""
    if config.quantization != "none":
        return config.quantization
    return BLOCKS if is_in_blocks else served_dtype(config, model)


def check_weights_fit(weight_bytes: int, free_bytes: int, kind: str) -> None:
    """Raise EngineConfigError, before a weight is read, if the weights alone are too large. `kind`: their format."""
    if weight_bytes > free_bytes:
        raise EngineConfigError(
            f"the weights alone take {format_bytes(weight_bytes)} in {kind}, and {format_bytes(free_bytes)} are free"
        )


def bytes_beside_evictable(free_bytes: int, weight_bytes: int) -> int:
    """Return the part of `free_bytes` that is left for KV cache and steps beside weights that the system may drop.

    It counts their pages as free. Of a model that is larger than memory a part stays there, and the rest is read again.
    """
    return max(free_bytes - weight_bytes, free_bytes // SHARE_BESIDE_EVICTABLE)


def least_beside_evictable(left_bytes: int, weight_bytes: int) -> int:
    """Return the least free bytes of which bytes_beside_evictable() leaves `left_bytes`."""
    return min(left_bytes + weight_bytes, left_bytes * SHARE_BESIDE_EVICTABLE)


def eviction_warnings(free_bytes: int, weight_bytes: int) -> tuple[str, ...]:
    """Return a line if not all weights can stay in memory."""
    if weight_bytes <= free_bytes:
        return ()
    sizes = f"the weights take {format_bytes(weight_bytes)}, and {format_bytes(free_bytes)} are free"
    return (f"{sizes}: every step reads a part of them from the disk again, which is slow",)


def size_engine(
    config: EngineConfig,
    model: ModelConfig,
    free_bytes: int,
    default_budget: int,
    pool_share: float = SHARE_OF_FREE_MEMORY,
) -> EngineLimits:
    """Return the limits of an engine with `free_bytes` left after its weights. The KV pool takes `pool_share` of
    them unless the user sets a size. Raises EngineConfigError."""
    budget = config.max_num_batched_tokens or default_budget
    num_blocks = pool_blocks(config, model, budget, kv_block_bytes(config, model), free_bytes, pool_share)
    pool_bytes = (num_blocks + 1) * kv_block_bytes(config, model)
    if pool_bytes > free_bytes:
        raise EngineConfigError(
            f"the configured KV cache takes {format_bytes(pool_bytes)}, and {format_bytes(free_bytes)} are free "
            f"after the weights; lower {_size_flag(config)}"
        )
    max_model_len, warnings = context_limit(config, model, num_blocks, budget)
    return EngineLimits(num_blocks, max_model_len, budget, warnings)


def bytes_for_longest(config: EngineConfig, model: ModelConfig, budget: int) -> int:
    """Bytes that must be free after the weights, so that one request of the longest context fits the KV pool."""
    longest = min(config.max_model_len or model.context_len, model.context_len)
    num_blocks = peak_blocks(config, model, budget, longest) + 1  # plus the null block
    return ceil(num_blocks * kv_block_bytes(config, model) / SHARE_OF_FREE_MEMORY)


def peak_blocks(config: EngineConfig, model: ModelConfig, budget: int, num_tokens: int) -> int:
    """Largest number of blocks that a request of `num_tokens` tokens uses at once, with a chunk of the whole budget."""
    return _geometry(config, model, budget).peak_blocks(num_tokens)


def requests_that_fit(num_blocks: int, length: int, block_size: int, window: int | None, max_num_seqs: int) -> int:
    """Return how many requests fit the pool while each writes its `length`-th token, and a step.

    With a window of 256 and blocks of 16 a long request uses 256 / 16 + 1 = 17 blocks.
    """
    in_pool = num_blocks // BlockGeometry(block_size, window, max_chunk=1).decoding_blocks(length)
    return min(in_pool, max_num_seqs)


def room_in_words(number: int, length: int) -> str:
    """Return "256 requests of 2,048"."""
    return f"{number:,} {'request' if number == 1 else 'requests'} of {length:,}"


def example_lengths(max_model_len: int) -> list[int]:
    """Return the EXAMPLE_LENGTHS below `max_model_len`, and `max_model_len`."""
    return [*(length for length in EXAMPLE_LENGTHS if length < max_model_len), max_model_len]


def pool_blocks(
    config: EngineConfig,
    model: ModelConfig,
    budget: int,
    block_bytes: int,
    free_bytes: int,
    pool_share: float = SHARE_OF_FREE_MEMORY,
) -> int:
    """Return the number of usable blocks: as configured, or as many as fit the pool's share of the memory, but never
    more than all sequences at full length could use. Raises EngineConfigError if no block fits."""
    if config.num_kv_blocks is not None:
        return _require_one_block(config.num_kv_blocks, block_bytes, _size_flag(config))
    if (size_bytes := config.kv_cache_memory_bytes) is not None:  # whoever writes 4 means 4GiB: the error shows bytes
        given = f"{_size_flag(config)} of {format_bytes(size_bytes)}"
        return _require_one_block(size_bytes // block_bytes - 1, block_bytes, given)
    longest = config.max_model_len or model.context_len
    per_sequence = peak_blocks(config, model, budget, longest)
    fits = int(free_bytes * pool_share) // block_bytes - 1
    if fits < 1:
        need, free = format_bytes(ceil(2 * block_bytes / pool_share)), format_bytes(free_bytes)
        raise EngineConfigError(
            f"free memory is too small for a KV cache: {free} are left after the weights, and {need} are needed "
            "(one block and the null block, and as much again for everything else)"
        )
    return min(fits, config.max_num_seqs * per_sequence)


def _size_flag(config: EngineConfig) -> str:
    """Return the flag that has set the size of the KV cache."""
    return "--kv-cache-memory-bytes" if config.num_kv_blocks is None else "--num-kv-blocks"


def _require_one_block(num_blocks: int, block_bytes: int, source: str) -> int:
    if num_blocks < 1:
        need = format_bytes(2 * block_bytes)
        raise EngineConfigError(
            f"{source} is too small for a KV cache: at least {need} are needed (one block and the null block)"
        )
    return num_blocks


def context_limit(
    config: EngineConfig, model: ModelConfig, num_blocks: int, budget: int
) -> tuple[int, tuple[str, ...]]:
    """Return the context length and warnings. A length set by flag must fit; a derived one is lowered to fit the pool.

    Raises EngineConfigError, which names the length that fits.
    """
    servable = _geometry(config, model, budget).max_servable_tokens(num_blocks)
    fits = model.context_len if servable is None else min(model.context_len, servable)
    if fits < 2:
        raise EngineConfigError(
            f"a KV cache of {num_blocks} {'block' if num_blocks == 1 else 'blocks'} holds no request"
        )
    configured = config.max_model_len
    if configured is None:
        lowered = fits < model.context_len
        text = f"context lowered from {model.context_len} to {fits} tokens: more does not fit the KV cache"
        return fits, (text,) if lowered else ()
    if configured < 2:
        raise EngineConfigError(
            f"--max-model-len {configured} holds no request: a prompt and a token of a reply take 2"
        )
    if configured > model.context_len:
        raise EngineConfigError(
            f"--max-model-len {configured} exceeds the model's context of {model.context_len}; "
            f"--max-model-len {fits} fits"
        )
    if configured > fits:
        raise EngineConfigError(f"--max-model-len {configured} does not fit the KV cache; --max-model-len {fits} fits")
    return configured, ()


def _geometry(config: EngineConfig, model: ModelConfig, budget: int) -> BlockGeometry:
    return BlockGeometry(config.block_size, model.window, budget)
