"""A model with exact integer arithmetic, so that no rounding can hide a scheduling bug.

A slot stores a 64-bit mix of (token, absolute position, slot before it). The next token is a mix of all slots in the
window, read through the block table. A stale block, an early free, a block in two tables, a wrong slot or a window off
by one changes a token. The value before position 0 is a mix of everything that the root hash covers, so that a block
shared across salts, tenants, numbers of experts or masks changes tokens too. The oracle computes the same from a plain
list of tokens. The hidden state of a position has a 1 at the place of its next token, modulo DIM, and 0 elsewhere.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from engine.errors import GrammarError
from engine.execution.experts.stats import ExpertReporter
from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan import Chunk, RowFailed, Sampled, StepPlan, StepResult
from engine.types import ExpertChoices, Request

POISON = 0xDEADBEEFDEADBEEF  # in blocks that are neither held nor cached
DIM = 8  # numbers of a hidden state
NAN = -1  # stands for NaN: a position that reads it computes NaN

NOT_FINITE = RowFailed("the model computed no finite logits for this request")


def mix(*values: int) -> int:
    """Return a 64-bit hash. Python's hash of integers is the same in every process."""
    return hash(values) & 0xFFFFFFFFFFFFFFFF


def root_of(request: Request) -> int:
    """Return a mix of the request's expert options, on which a block's contents depend, its salt and its tenant."""
    mask = request.expert_mask or []
    switches = [int(on) for layer in mask for on in layer]
    salt = int.from_bytes(request.cache_salt.encode(), "big")
    return mix(salt, request.tenant, request.experts_per_token or 0, *switches)


def experts_of(token: int, position: int, layer: int, k: int, num_experts: int) -> list[int]:
    """Return the k expert ids of a position."""
    first = mix(token, position, layer)
    return [(first + i) % num_experts for i in range(k)]


def oracle(root: int, prompt: list[int], count: int, window: int | None, vocab: int) -> list[int]:
    """Return the `count` tokens after the prompt, computed from the plain list of tokens."""
    values: list[int] = []
    tokens: list[int] = []
    for position in range(len(prompt) + count - 1):
        token = prompt[position] if position < len(prompt) else tokens[position - len(prompt)]
        values.append(mix(token, position, values[-1] if values else root))
        if position >= len(prompt) - 1:
            tokens.append(next_token(values[-window:] if window else values, vocab))
    return tokens


def embedding_of(token: int, length: int) -> bytes:
    """Return the first `length` numbers of the hidden state whose next token is `token`."""
    return struct.pack(f"<{length}f", *(float(place == token % DIM) for place in range(length)))


def next_token(values: Iterable[int], vocab: int) -> int:
    return mix(*values) % vocab


def masked(token: int, mask: bytes, vocab: int) -> int:
    """Return the token, or the next one of the vocabulary if the mask forbids it."""
    return token if mask[token // 8] >> token % 8 & 1 else (token + 1) % vocab


@dataclass(frozen=True)
class Computed:
    """A launched step with its results."""

    result: StepResult


class ExactRunner:
    """Fake of ModelRunner. `nan_ids`: requests whose next chunk computes NaN."""

    experts = ExpertReporter(None)

    def __init__(self, num_blocks: int, block_size: int, window: int | None, vocab: int, num_layers: int = 1) -> None:
        self.block_size = block_size
        self.window = window
        self.vocab = vocab
        self.num_layers = num_layers
        self.num_experts = 4
        self.slots = [POISON] * ((num_blocks + 1) * block_size)
        self.newest: dict[tuple[int, int], int] = {}  # sampled tokens by request and position, as a device keeps them
        self.nan_ids: set[int] = set()
        self.nan_draft_ids: set[int] = set()  # has no effect here: RowsRunner computes these NaN

    def run(self, plan: StepPlan) -> StepResult:
        return self.finish(self.launch(plan))

    def finish(self, step: Computed) -> StepResult:
        return step.result

    def launch(self, plan: StepPlan) -> Computed:
        """Compute all chunks in order. Tokens that the host does not have yet come from `newest`."""
        written: dict[int, int] = {}  # applied after all chunks: no sequence reads what another writes in this step
        sampled: dict[int, Sampled | RowFailed] = {}
        choices: dict[int, ExpertChoices] = {}
        embeddings: dict[int, bytes] = {}
        behind: dict[int, list[Sampled]] = {}
        for chunk in plan.chunks:
            request_id = chunk.sequence.request_id
            num_known = chunk.length - len(chunk.draft)
            known = [self._token(chunk.sequence, p) for p in range(chunk.start, chunk.start + num_known)]
            tokens = known + list(chunk.draft)
            values = self._values(chunk, tokens)
            written |= {self._slot(chunk.sequence.block_table, p): v for p, v in enumerate(values, chunk.start)}
            outcome = self._outcome(chunk, values)
            if outcome is not None:
                sampled[request_id] = outcome
                if isinstance(outcome, Sampled) and chunk.draft:
                    behind[request_id] = self._behind_drafts(chunk, values, outcome.token_id)
            elif chunk.embeds:
                token = next_token(self._visible(chunk, values), self.vocab)
                embeddings[request_id] = embedding_of(token, chunk.sequence.request.embedding_len or 0)
            if chunk.sequence.experts:
                choices[request_id] = self._choices(chunk, tokens)
        for slot, value in written.items():
            self.slots[slot] = value
        return Computed(StepResult(sampled, {}, choices, embeddings, behind))

    def _behind_drafts(self, chunk: Chunk, values: list[int], token: int) -> list[Sampled]:
        """Return the tokens behind the drafted ones that are right. `token`: the one before the draft."""
        behind: list[Sampled] = []
        for place, drafted in enumerate(chunk.draft):
            if drafted != token:
                break
            end = chunk.length - len(chunk.draft) + place + 1
            token = next_token(self._visible(chunk, values[:end]), self.vocab)
            if chunk.sequence.matcher is not None:
                mask = chunk.sequence.matcher.draft_bitmask(chunk.draft[: place + 1])
                token = masked(token, mask, self.vocab)
            behind.append(Sampled(token))
        return behind

    def _token(self, sequence: Sequence, position: int) -> int:
        if position < len(sequence.token_ids):
            return sequence.token_ids[position]
        assert not sequence.needs_last_token, "a position was scheduled that depends on a token the host does not have"
        return self.newest.get((sequence.request_id, position), 0)  # 0: the step before it failed

    def _values(self, chunk: Chunk, tokens: list[int]) -> list[int]:
        """Return the values that the chunk's positions store."""
        table, start = chunk.sequence.block_table, chunk.start
        before = self.slots[self._slot(table, start - 1)] if start else root_of(chunk.sequence.request)
        is_nan = chunk.sequence.request_id in self.nan_ids
        values = []
        for position, token in enumerate(tokens, start):
            before = NAN if is_nan or before == NAN else mix(token, position, before)
            values.append(before)
        return values

    def _outcome(self, chunk: Chunk, values: list[int]) -> Sampled | RowFailed | None:
        sequence, position = chunk.sequence, chunk.start + chunk.length - 1
        if NAN in values or self._reads_a_nan(sequence.block_table):
            return NOT_FINITE
        if not chunk.samples:
            return None
        token = next_token(self._visible(chunk, values[: chunk.length - len(chunk.draft)]), self.vocab)
        if sequence.matcher is not None:
            try:
                mask = sequence.matcher.bitmask(sequence.token_ids, sequence.num_prompt_tokens)
            except GrammarError:
                return RowFailed("the request's grammar could not continue")
            token = masked(token, mask, self.vocab)
        if not chunk.draft:
            self.newest[sequence.request_id, position + 1] = token
        return Sampled(token)

    def _reads_a_nan(self, table: list[int]) -> bool:
        """Return whether a held block has a NaN: kernels read whole blocks and multiply masked positions by 0."""
        size = self.block_size
        return any(NAN in self.slots[block * size : (block + 1) * size] for block in table if block)

    def _visible(self, chunk: Chunk, values: list[int]) -> list[int]:
        """Return what the position of the last value sees: slots of earlier steps, then the values of this step."""
        first = max(0, chunk.start + len(values) - self.window) if self.window else 0
        table = chunk.sequence.block_table
        earlier = [self.slots[self._slot(table, p)] for p in range(first, chunk.start)]
        return earlier + values[max(0, first - chunk.start) :]

    def _slot(self, table: list[int], position: int) -> int:
        block = table[position // self.block_size]
        assert block != 0, "the null block is read or written"
        return block * self.block_size + position % self.block_size

    def _choices(self, chunk: Chunk, tokens: list[int]) -> ExpertChoices:
        k = chunk.sequence.request.experts_per_token or 1
        return [
            [experts_of(token, p, layer, k, self.num_experts) for p, token in enumerate(tokens, chunk.start)]
            for layer in range(self.num_layers)
        ]

    def poison(self, block_ids: Iterable[int]) -> None:
        """Overwrite blocks that must not be read any more. Keeps NaN, so that a missing zeroing is noticed."""
        size = self.block_size
        self.fill((b for b in block_ids if NAN not in self.slots[b * size : (b + 1) * size]), POISON)

    def zero_blocks(self, block_ids: Iterable[int]) -> None:
        self.fill(block_ids, 0)

    def zero_drafts(self, plan: StepPlan) -> None:
        """Do nothing: no draft gives NaN here."""

    def fill(self, block_ids: Iterable[int], value: int) -> None:
        size = self.block_size
        for block in block_ids:
            self.slots[block * size : (block + 1) * size] = [value] * size
