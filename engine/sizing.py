"""Decides the engine's limits from the model, the machine and what the user asked for: pool size, context, budget."""

from dataclasses import dataclass

from engine.block_tables import BlockTables
from engine.blocks import BlockPool
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.memory import format_bytes
from model.config import ModelConfig

SHARE_OF_FREE_MEMORY = 0.5  # of what is left after the weights, where the user sets no size
DEFAULT_GPU_BUDGET = 2048
MAX_CPU_BUDGET = 2048
MIN_CPU_BUDGET = 32


@dataclass(frozen=True, slots=True)
class Limits:
    """The effective limits of one engine."""

    num_blocks: int  # usable ones, without the null block
    max_model_len: int
    max_num_batched_tokens: int
    warnings: tuple[str, ...] = ()

    @property
    def max_prompt_tokens(self) -> int:
        return self.max_model_len - 1


def pool_blocks(config: EngineConfig, model: ModelConfig, budget: int, block_bytes: int, free_bytes: int) -> int:
    """How many usable blocks the KV pool gets: as many as asked for, or what half of the free memory holds, but never
    more than all sequences at their longest could use. Raises EngineConfigError where not one block fits."""
    if config.num_kv_blocks is not None:
        return _checked(config.num_kv_blocks, block_bytes, "--num-kv-blocks")
    if config.kv_cache_memory_bytes is not None:
        return _checked(config.kv_cache_memory_bytes // block_bytes - 1, block_bytes, "--kv-cache-memory-bytes")
    longest = config.max_model_len or model.context_len
    per_sequence = _tables(config, model, 1, budget).peak_blocks(longest)
    fits = int(free_bytes * SHARE_OF_FREE_MEMORY) // block_bytes - 1
    return _checked(min(fits, config.max_num_seqs * per_sequence), block_bytes, "free memory")


def _checked(num_blocks: int, block_bytes: int, source: str) -> int:
    if num_blocks < 1:
        need = format_bytes(2 * block_bytes)
        raise EngineConfigError(
            f"{source} is too small for a KV cache: at least {need} are needed (one block and the null block)"
        )
    return num_blocks


def context_limit(
    config: EngineConfig, model: ModelConfig, num_blocks: int, budget: int
) -> tuple[int, tuple[str, ...]]:
    """The longest sequence served, and warnings. A length set by flag must fit, else the error names the number that
    would; a derived one is lowered to what the pool holds."""
    servable = _tables(config, model, num_blocks, budget).max_servable_tokens()
    fits = model.context_len if servable is None else min(model.context_len, servable)
    if fits < 2:
        raise EngineConfigError(f"the KV cache of {num_blocks} blocks holds no request: raise --kv-cache-memory-bytes")
    wanted = config.max_model_len
    if wanted is None:
        lowered = fits < model.context_len
        text = f"context lowered from {model.context_len} to {fits} tokens: more does not fit the KV cache"
        return fits, (text,) if lowered else ()
    if wanted > model.context_len:
        raise EngineConfigError(
            f"--max-model-len {wanted} exceeds the model's context; --max-model-len {model.context_len} fits"
        )
    if wanted > fits:
        raise EngineConfigError(f"--max-model-len {wanted} does not fit the KV cache; --max-model-len {fits} fits")
    return wanted, ()


def _tables(config: EngineConfig, model: ModelConfig, num_blocks: int, budget: int) -> BlockTables:
    return BlockTables(BlockPool(num_blocks), config.block_size, model.window, budget, prefix_caching=False)
