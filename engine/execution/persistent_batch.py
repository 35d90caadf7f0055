"""State of running requests that persists between steps: tokens, block tables, sampling parameters, one row each.

A request's row is written when it starts. A decode step then adds only new blocks to it. Tokens stay on the model's
device: the sampler appends each one and the next step reads it there, so that a step can be prepared before the host
knows the tokens of the step in flight.
Letters: R rows, L tokens of the longest request, M blocks of it, V vocabulary.
"""

from collections.abc import Sequence as SequenceOf
from operator import attrgetter
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from engine.execution.device_transfer import Array, to_device
from engine.execution.row_constraints import RowConstraints
from engine.scheduling.sequence import Sequence, Status
from engine.scheduling.step_plan import Chunk
from engine.token_constraints import NO_CONSTRAINTS
from model.sampling_batch import FloatParam, IntParam

# Read for all sequences of every step: attrgetter and map run no Python code per sequence.
BLOCK_TABLE, NUM_EVICTED_BLOCKS = attrgetter("block_table"), attrgetter("num_evicted_blocks")
NUM_PREEMPTIONS = attrgetter("num_preemptions")

SPARE_BLOCKS = 16  # on a CPU: columns that new block tables have behind the longest one
MAX_WIDER = 4  # times as many columns as new ones would have, from which on kept ones are given up: ranks are sent all

BlocksState = tuple[int, int, int]  # blocks of a sequence, evicted ones among them, preemptions so far

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]


def view_of(array: Array) -> "memoryview[int]":
    """Return a view of an array of integers. Python reads and writes its elements faster than the array's."""
    return memoryview(cast("Any", array))


class PersistentBatch:
    """Owns the arrays. A row is reused when its request has ended and no step in flight uses it."""

    def __init__(
        self, num_running: int, max_tokens: int, block_size: int, vocab_size: int, device: torch.device
    ) -> None:
        """Rows for `num_running` requests, and for as many that have ended but are in a step in flight."""
        num_rows = 2 * num_running
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.device = device
        self.tokens = torch.zeros(num_rows, max_tokens + 1, dtype=torch.int32, device=device)  # [R, L]
        self.host_tokens = self.tokens.numpy() if device.type == "cpu" else None  # the same memory
        self._token_view = None if self.host_tokens is None else view_of(self.host_tokens)
        self.block_tables = np.zeros((num_rows, -(-max_tokens // block_size)), dtype=np.int32)  # [R, M], padded with 0
        self._table_view = view_of(self.block_tables)
        self._table_bytes = self._table_view.cast("B")
        self.float_params = np.zeros((num_rows, len(FloatParam)), dtype=np.float32)
        self.int_params = np.zeros((num_rows, len(IntParam)), dtype=np.int64)
        self.is_constrained = np.zeros(num_rows, dtype=bool)  # [R] biases or a mask restrict the tokens
        self.constraints: list[RowConstraints | None] = [None] * num_rows  # of the constrained rows
        self.scores_prompt = np.zeros(num_rows, dtype=bool)
        self._written: list[BlocksState] = [(0, 0, 0)] * num_rows  # contents of each row of block_tables
        self._row_of: dict[Sequence, int] = {}
        self._free = list(range(num_rows))
        self._drafted_rows: set[int] = set()  # rows with tokens that may be wrong, or may lack the newest ones
        self._last: list[Sequence] = []
        self._last_rows = np.zeros(0, dtype=np.int64)
        self._last_states: list[BlocksState] = []  # of these sequences
        self._tables: tuple[Int32s, torch.Tensor] | None = None  # of these sequences; None: outdated
        self._table_memory = np.zeros((0, 0), dtype=np.int32)  # on a CPU: of all tables, whose first rows each step has
        self._tables_bytes = memoryview(bytearray())  # the same memory
        self._tables_of_size: dict[int, tuple[Int32s, torch.Tensor]] = {}  # by S

    def update(self, sequences: list[Sequence]) -> Int64s:
        """Update the rows of a step's sequences; return their indices [S], the same object for the same sequences."""
        if sequences != self._last:
            self._last_rows = np.array([self._row_index(sequence) for sequence in sequences], dtype=np.int64)
            self._last, self._last_states, self._tables = sequences, [], None
        lengths = map(len, map(BLOCK_TABLE, sequences))
        states = list(zip(lengths, map(NUM_EVICTED_BLOCKS, sequences), map(NUM_PREEMPTIONS, sequences), strict=True))
        if states != self._last_states:
            for index, (row, state) in enumerate(zip(self._last_rows.tolist(), states, strict=True)):
                if state != self._written[row]:
                    self._write_blocks(row, sequences[index], state)
                    self._update_tables(index, row, num_blocks=state[0])
            self._last_states = states
        return self._last_rows

    def _row_index(self, sequence: Sequence) -> int:
        row = self._row_of.get(sequence)
        return self._fill_row(sequence) if row is None else row

    def _fill_row(self, sequence: Sequence) -> int:
        self._reclaim()
        row = self._free[-1]
        ids = np.array(sequence.token_ids, dtype=np.int32)
        self.tokens[row, : len(ids)] = to_device(ids, self.device)
        self.float_params[row] = _float_params(sequence)
        self.int_params[row] = _int_params(sequence, row)
        is_restricted = is_constrained(sequence)
        self.constraints[row] = RowConstraints(sequence.request.params, self.vocab_size) if is_restricted else None
        self.is_constrained[row] = is_restricted
        self.scores_prompt[row] = sequence.request.params.prompt_logprobs
        self._written[row] = 0, 0, sequence.num_preemptions
        self._row_of[sequence] = self._free.pop()  # only once the row is complete: a value out of range raises above
        return row

    def _reclaim(self) -> None:
        ended = [s for s in self._row_of if s.status is not Status.RUNNING and not s.num_chunks_in_flight]
        for sequence in ended:
            self._free.append(self._row_of.pop(sequence))

    def _write_blocks(self, row: int, sequence: Sequence, state: BlocksState) -> None:
        """Write the part of the block table that has changed since the last call."""
        (num_blocks, num_evicted, num_preemptions), table = state, sequence.block_table
        written, evicted, preemptions_before = self._written[row]
        if num_preemptions != preemptions_before:  # all of its blocks are new
            written = evicted = 0
        if num_blocks < written or not written:  # blocks of an earlier request, or of this one, stand behind
            self.block_tables[row, num_blocks:] = 0
        for place in range(written, num_blocks):  # one or two in most steps
            self._table_view[row, place] = table[place]
        for place in range(evicted, num_evicted):
            self._table_view[row, place] = 0
        self._written[row] = state

    def _update_tables(self, index: int, row: int, num_blocks: int) -> None:
        """Copy a row of block_tables to the kept tables of the present sequences; drop these if it does not fit. On a
        GPU, where a step in flight may read them, they are always dropped."""
        if self._tables is None:
            return
        if self.device.type != "cpu" or num_blocks > self._table_memory.shape[1]:
            self._tables = None
        else:
            self._copy_table(index, row)

    def _copy_table(self, index: int, row: int) -> None:
        size, width = self._table_memory.strides[0], self.block_tables.strides[0]
        self._tables_bytes[index * size : (index + 1) * size] = self._table_bytes[row * width : row * width + size]

    @property
    def has_drafts(self) -> bool:
        """True if write_drafts() must see the next step."""
        return bool(self._drafted_rows)

    def write_drafts(self, chunks: SequenceOf[Chunk], rows: Int64s) -> None:
        """Write each draft behind its request's tokens. The sampler writes no token of such a row: the request's next
        step finds the tokens that its host accepted."""
        for chunk, row in zip(chunks, rows.tolist(), strict=True):
            if not chunk.draft and row not in self._drafted_rows:
                continue
            self._write_tokens(row, chunk.start, [*chunk.sequence.token_ids[chunk.start :], *chunk.draft])
            (self._drafted_rows.add if chunk.draft else self._drafted_rows.discard)(row)

    def _write_tokens(self, row: int, start: int, token_ids: list[int]) -> None:
        """Write tokens that the host knows. On a CPU in a loop: a step writes one or a few for each of many rows."""
        if self._token_view is None:
            ids = to_device(np.array(token_ids, dtype=np.int32), self.device)
            self.tokens[row, start : start + len(ids)] = ids
            return
        for position, token_id in enumerate(token_ids, start):
            self._token_view[row, position] = token_id

    def write_sampled(self, rows: Int64s, positions: Int64s, token_ids: torch.Tensor) -> None:
        """Write sampled tokens [N] at these positions of these rows, [N] each, without waiting for the device."""
        if self._token_view is None:
            self.tokens[to_device(rows, self.device), to_device(positions, self.device)] = token_ids.int()
            return
        for row, position, token_id in zip(rows.tolist(), positions.tolist(), token_ids.tolist(), strict=True):
            self._token_view[row, position] = token_id

    def tables_of(self, rows: Int64s) -> tuple[Int32s, torch.Tensor]:
        """Return the block tables of the rows that update() returned last, [S, M], padded with 0: on the host and on
        the device. Read only. On a CPU they are the same objects for as many rows, as long as M blocks suffice, and the
        next update() writes to them: what is prepared for their address stays valid."""
        if self._tables is None:
            width = max(num_blocks for num_blocks, _, _ in self._last_states)
            if self.device.type == "cpu":
                self._tables = self._kept_tables(len(rows), width)
                for index, row in enumerate(rows.tolist()):
                    self._copy_table(index, row)
            else:
                tables = np.take(self.block_tables[:, :width], rows, axis=0)
                self._tables = tables, to_device(tables, self.device)
        return self._tables

    def _kept_tables(self, num_rows: int, num_blocks: int) -> tuple[Int32s, torch.Tensor]:
        """Return the arrays of the tables of so many rows, with room for `num_blocks` in each."""
        width = min(num_blocks + SPARE_BLOCKS, self.block_tables.shape[1])
        if not num_blocks <= self._table_memory.shape[1] <= MAX_WIDER * width:
            self._table_memory = np.zeros((len(self.block_tables), width), dtype=np.int32)
            self._tables_bytes = view_of(self._table_memory).cast("B")
            self._tables_of_size.clear()
        if num_rows not in self._tables_of_size:
            tables = self._table_memory[:num_rows]
            self._tables_of_size[num_rows] = tables, torch.from_numpy(tables)
        return self._tables_of_size[num_rows]

    def tokens_at(self, rows: Int64s, positions: Int64s) -> torch.Tensor:
        """Return the tokens at these positions of these rows, [T] int64 on the device, which may still compute some."""
        if self.host_tokens is not None:
            return torch.from_numpy(self.host_tokens[rows, positions].astype(np.int64))
        return self.tokens[to_device(rows, self.device), to_device(positions, self.device)].long()


def _float_params(sequence: Sequence) -> list[float]:
    params = sequence.request.params
    return [
        params.temperature,
        params.top_p,
        params.min_p,
        params.repetition_penalty,
        params.frequency_penalty,
        params.presence_penalty,
    ]


def _int_params(sequence: Sequence, row: int) -> list[int]:
    """Parameters in the order of IntParam. The sampler fills in the columns that change every step."""
    params = sequence.request.params
    int_params = dict.fromkeys(IntParam, 0) | {
        IntParam.TOP_K: params.top_k,
        IntParam.NUM_LOGPROBS: -1 if params.num_logprobs is None else params.num_logprobs,
        IntParam.SEED: (params.seed + 2**63) % 2**64 - 2**63,
        IntParam.PROMPT_INDEX: params.prompt_index,
        IntParam.CHOICE_INDEX: params.choice_index,
        IntParam.NUM_PROMPT_TOKENS: sequence.num_prompt_tokens,
        IntParam.TARGET: -1,
        IntParam.HISTORY_ROW: row,
        IntParam.MASK_ROW: -1,
    }
    return list(int_params.values())


def is_constrained(sequence: Sequence) -> bool:
    """True if biases or masks restrict the sampled tokens. All other parameters are columns of the row."""
    params = sequence.request.params
    return bool(params.constraints != NO_CONSTRAINTS or params.min_tokens or sequence.matcher is not None)
