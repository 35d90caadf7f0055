"""A model whose arithmetic is exact, so that a test of scheduling has no rounding to hide behind.

A slot stores a 64-bit mix of (token, absolute position, the slot before it); the next token is a mix of all slots in
the window, read through the block table. A stale block, an early free, a block in two tables, a wrong slot or a window
off by one changes a token. The oracle computes the same from the plain list of tokens.
"""

from engine.plan import Sampled, StepPlan, StepResult

MASK = (1 << 64) - 1
POISON = 0xDEADBEEFDEADBEEF


def mix(a: int, b: int) -> int:
    """splitmix64's finaliser over both."""
    z = (a * 0x9E3779B97F4A7C15 + b + 0x632BE59BD9B4E019) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def _next(values: list[int], vocab: int) -> int:
    total = 0
    for value in values:
        total = mix(total, value)
    return total % vocab


def oracle(prompt: list[int], count: int, window: int | None, vocab: int) -> list[int]:
    """`count` tokens after the prompt, from the plain list alone."""
    values: list[int] = []
    tokens: list[int] = []
    for position in range(len(prompt) + count - 1):
        token = prompt[position] if position < len(prompt) else tokens[position - len(prompt)]
        before = values[-1] if values else 0
        values.append(mix(mix(token, position), before))
        if position >= len(prompt) - 1:
            tokens.append(_next(values[-window:] if window else values, vocab))
    return tokens


class KvHashRunner:
    """Stands where the ModelRunner stands."""

    def __init__(self, num_blocks: int, block_size: int, window: int | None, vocab: int) -> None:
        self.block_size = block_size
        self.window = window
        self.vocab = vocab
        self.slots = [POISON] * ((num_blocks + 1) * block_size)
        self.newest: dict[int, int] = {}  # token sampled last, as a device keeps it

    def run(self, plan: StepPlan) -> StepResult:
        """Computes all chunks in order. A token the host does not have yet is taken from `newest`."""
        sampled = {}
        for chunk in plan.chunks:
            sequence = chunk.sequence
            for position in range(chunk.start, chunk.start + chunk.length):
                known = position < len(sequence.token_ids)
                token = sequence.token_ids[position] if known else self.newest[sequence.request_id]
                before = self.slots[self._slot(sequence.block_table, position - 1)] if position else 0
                self.slots[self._slot(sequence.block_table, position)] = mix(mix(token, position), before)
            if chunk.samples:
                token = _next(self._visible(sequence.block_table, position), self.vocab)
                self.newest[sequence.request_id] = token
                sampled[sequence.request_id] = Sampled(token)
        return StepResult(dict(sampled))

    def _visible(self, table: list[int], position: int) -> list[int]:
        first = max(0, position - self.window + 1) if self.window else 0
        return [self.slots[self._slot(table, p)] for p in range(first, position + 1)]

    def _slot(self, table: list[int], position: int) -> int:
        block = table[position // self.block_size]
        assert block != 0, "the null block is read or written"
        return block * self.block_size + position % self.block_size
