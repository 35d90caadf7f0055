"""Division of a network among ranks: each has a part of the outputs of every matrix. Imports no torch.

Matrices are cut by outputs, never by inputs: then each number is computed by one rank, in the order in which a single
rank would compute it, and its bits are the same. Query, key and value heads are cut by KV head; other matrices by
panels, in which outputs are packed. What is not a large matrix is whole on every rank: embedding, norms, gates.

Shape letters as in model/mixtral.py; F hidden dim of an FFN or expert.
"""

from dataclasses import dataclass, replace

from model.config import ModelConfig

PANEL = 32  # outputs that are packed together
MIN_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Cut:
    """The part of one of `size` ranks."""

    rank: int = 0
    size: int = 1

    def part(self, count: int, unit: int) -> range:
        """Return which of `count` outputs this rank has, whole units of them but at the end.

        Example: 80 outputs in units of 32 on 2 ranks are 0 .. 31 and 32 .. 79.
        """
        num_units = -(-count // unit)
        first, end = (num_units * rank // self.size * unit for rank in (self.rank, self.rank + 1))
        return range(first, min(end, count))

    def heads(self, config: ModelConfig) -> range:
        """Return the query heads of this rank: those of its KV heads."""
        return self.part(config.num_heads, config.num_heads // config.num_kv_heads)

    def with_own_heads(self, config: ModelConfig) -> ModelConfig:
        """Return the config with the heads of this rank only: the shape of its attention and KV cache."""
        return replace(config, num_heads=config.num_heads // self.size, num_kv_heads=config.num_kv_heads // self.size)


WHOLE = Cut()


def all_cuts(size: int) -> list[Cut]:
    """Return the parts of all ranks."""
    return [Cut(rank, size) for rank in range(size)]


def why_not_divisible(config: ModelConfig, size: int) -> str:
    """Return why this network cannot be cut for `size` ranks, in words that follow its name; empty if it can."""
    if config.num_kv_heads % size:
        fitting = ", ".join(str(count) for count in range(1, config.num_kv_heads + 1) if _fits(config, count))
        return f"has {config.num_kv_heads} KV heads, which {size} ranks cannot share equally; {fitting} can"
    if not _fits(config, size):
        smallest = min(config.dim, config.hidden_dim, config.vocab_size)
        return f"has a matrix of {smallest} outputs, fewer than {PANEL} for each of {size} ranks"
    return ""


def _fits(config: ModelConfig, size: int) -> bool:
    panels = -(-min(config.dim, config.hidden_dim, config.vocab_size) // PANEL)
    return config.num_kv_heads % size == 0 and panels >= size


def gather_buffer_bytes(config: ModelConfig) -> int:
    """Bytes of the buffer through which ranks exchange rows: enough for the widest one in float32."""
    widest = max(config.vocab_size, config.hidden_dim, config.dim, config.num_heads * config.head_dim)
    return max(MIN_BUFFER_BYTES, -(-widest * 4 // 64) * 64)
