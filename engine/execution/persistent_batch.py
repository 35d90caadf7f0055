"""What stays of a running request from step to step, in one row of each array: tokens, blocks, how it is sampled.

A request's row is written when it starts. From then on a step that decodes adds to it only what is new: a block now and
then. Tokens are kept on the model's device, where the sampler writes each one behind those before it and the next step
reads it: a step can be prepared before the host knows the tokens of the one in flight.
Letters: R rows, L tokens of the longest request, M blocks of it, V vocabulary.
"""

from operator import attrgetter

import numpy as np
import torch
from numpy.typing import NDArray

from engine.execution.device_transfer import to_device
from engine.scheduling.sequence import Sequence, Status
from model.sampling_batch import FloatParam, IntParam

# A step asks this of all its sequences, so it is asked without a line of Python for each.
BLOCK_TABLE, NUM_SLID_BLOCKS = attrgetter("block_table"), attrgetter("num_evicted_blocks")
NUM_PREEMPTIONS = attrgetter("num_preemptions")

BlocksState = tuple[int, int, int]  # a sequence's blocks, slid ones among them, preemptions so far

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]


class PersistentBatch:
    """Owns the arrays. A row is given back when its request has ended and no step in flight uses it."""

    def __init__(
        self, num_running: int, max_tokens: int, block_size: int, vocab_size: int, device: torch.device
    ) -> None:
        """`num_running` requests at once, and as many that have ended in a step still in flight."""
        num_rows = 2 * num_running
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.device = device
        self.tokens = torch.zeros(num_rows, max_tokens + 1, dtype=torch.int32, device=device)  # [R, L]
        self._host_tokens = self.tokens.numpy() if device.type == "cpu" else None  # the same memory
        self.block_tables = np.zeros(
            (num_rows, -(-max_tokens // block_size)), dtype=np.int32
        )  # [R, M], 0 behind the end
        self.float_params = np.zeros((num_rows, len(FloatParam)), dtype=np.float32)
        self.int_params = np.zeros((num_rows, len(IntParam)), dtype=np.int64)
        self.is_constrained = np.zeros(num_rows, dtype=bool)  # what may be sampled changes from step to step
        self.scores_prompt = np.zeros(num_rows, dtype=bool)
        self._written: list[BlocksState] = [(0, 0, 0)] * num_rows  # what block_tables has of each row
        self._row_of: dict[Sequence, int] = {}
        self._free = list(range(num_rows))
        self._last: list[Sequence] = []
        self._last_rows = np.zeros(0, dtype=np.int64)
        self._last_states: list[BlocksState] = []  # of these sequences
        self._last_tables: tuple[Int32s, torch.Tensor] | None = None  # None: not made since something changed

    def update(self, sequences: list[Sequence]) -> Int64s:
        """The rows of a step's sequences, brought up to date. The same object as before for the same sequences."""
        if sequences != self._last:
            self._last_rows = np.array([self._row(sequence) for sequence in sequences], dtype=np.int64)
            self._last, self._last_states = sequences, []
        lengths = map(len, map(BLOCK_TABLE, sequences))
        states = list(zip(lengths, map(NUM_SLID_BLOCKS, sequences), map(NUM_PREEMPTIONS, sequences), strict=True))
        if states != self._last_states:
            for row, sequence, state in zip(self._last_rows.tolist(), sequences, states, strict=True):
                if state != self._written[row]:
                    self._write_blocks(row, sequence, state)
            self._last_states, self._last_tables = states, None
        return self._last_rows

    def _row(self, sequence: Sequence) -> int:
        row = self._row_of.get(sequence)
        return self._place(sequence) if row is None else row

    def _place(self, sequence: Sequence) -> int:
        self._reclaim()
        row = self._free[-1]
        ids = np.array(sequence.token_ids, dtype=np.int32)
        self.tokens[row, : len(ids)] = to_device(ids, self.device)
        self.float_params[row] = _float_params(sequence)
        self.int_params[row] = _int_params(sequence, row)
        self.is_constrained[row] = is_constrained(sequence)
        self.scores_prompt[row] = sequence.request.params.prompt_logprobs
        self._written[row] = 0, 0, sequence.num_preemptions
        self._row_of[sequence] = self._free.pop()  # now that all of it is written: a value that no array takes raises
        return row

    def _reclaim(self) -> None:
        ended = [s for s in self._row_of if s.status is not Status.RUNNING and not s.num_chunks_in_flight]
        for sequence in ended:
            self._free.append(self._row_of.pop(sequence))

    def _write_blocks(self, row: int, sequence: Sequence, state: BlocksState) -> None:
        """What is new of the table since it was last written."""
        (num_blocks, num_slid, num_preemptions), table = state, sequence.block_table
        written, slid, preemptions_before = self._written[row]
        if num_preemptions != preemptions_before:  # its blocks are others now
            written = slid = 0
        if num_blocks != written:
            self.block_tables[row, written:num_blocks] = table[written:]
            self.block_tables[row, num_blocks:] = 0
        if num_slid != slid:
            self.block_tables[row, :num_slid] = 0
        self._written[row] = state

    def tables_of(self, rows: Int64s) -> tuple[Int32s, torch.Tensor]:
        """The block tables of the rows that update() returned last, as wide as the longest, 0 behind an end: [S, M].
        Here, and on the device; nobody writes to them."""
        if self._last_tables is None:
            width = max(num_blocks for num_blocks, _, _ in self._last_states)
            tables = np.take(self.block_tables[:, :width], rows, axis=0)
            self._last_tables = tables, to_device(tables, self.device)
        return self._last_tables

    def tokens_at(self, rows: Int64s, positions: Int64s) -> torch.Tensor:
        """The tokens at these positions of these rows, [T] int64 on the device, where the last may be still to come."""
        if self._host_tokens is not None:
            return torch.from_numpy(self._host_tokens[rows, positions].astype(np.int64))
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
    """Columns that change from step to step are filled in by the sampler."""
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
    """Whether biases or masks say what may be sampled. Everything else is numbers in the row."""
    params = sequence.request.params
    return bool(
        params.logit_bias
        or params.allowed_token_ids is not None
        or params.bad_words
        or params.min_tokens
        or sequence.matcher is not None
    )
