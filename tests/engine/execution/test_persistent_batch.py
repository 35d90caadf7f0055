"""Rows of the persistent batch follow their sequences: tokens, block tables, and reuse after the end."""

import numpy as np
import pytest
import torch

from engine.execution.persistent_batch import SPARE_BLOCKS, PersistentBatch
from engine.scheduling.sequence import Sequence, Status
from engine.scheduling.step_plan import Chunk
from engine.types import Request, SamplingParams
from model.sampling_batch import FloatParam, IntParam

BLOCK_SIZE = 4


def batch(num_running: int = 2) -> PersistentBatch:
    return PersistentBatch(num_running, 40, BLOCK_SIZE, 50, torch.device("cpu"))


def running(request_id: int, prompt: list[int], blocks: list[int], **params: object) -> Sequence:
    made = Sequence(Request(request_id, prompt, SamplingParams(**params)), (0, 0), 40)  # type: ignore[arg-type]
    made.status, made.block_table = Status.RUNNING, blocks
    return made


def tables(requests: PersistentBatch, sequences: list[Sequence]) -> list[list[int]]:
    """Return the tables without the spare columns behind the longest one."""
    on_host, on_device = requests.tables_of(requests.update(sequences))
    width = max(len(sequence.block_table) for sequence in sequences)
    assert on_host.tolist() == on_device.tolist() and not on_host[:, width:].any()
    return on_host[:, :width].tolist()


def test_the_same_sequences_get_the_same_rows_object() -> None:
    requests, sequences = batch(), [running(1, [5, 6], [3]), running(2, [7], [4])]
    rows = requests.update(sequences)
    assert requests.update(list(sequences)) is rows
    assert requests.update(sequences[::-1]) is not rows
    assert requests.tokens_at(rows, np.array([1, 0])).tolist() == [6, 7]


def test_block_tables_follow_growth_eviction_and_preemption() -> None:
    requests, a, b = batch(), running(1, [5] * 8, [3, 9]), running(2, [7], [4])
    assert tables(requests, [a, b]) == [[3, 9], [4, 0]]
    b.block_table += [6, 8]
    assert tables(requests, [a, b]) == [[3, 9, 0], [4, 6, 8]]
    b.block_table, b.num_evicted_blocks = [0, 6, 8], 1
    assert tables(requests, [a, b]) == [[3, 9, 0], [0, 6, 8]]
    a.block_table, a.num_preemptions = [2], 1
    assert tables(requests, [a, b]) == [[2, 0, 0], [0, 6, 8]]


def test_kept_tables_get_new_blocks_until_these_do_not_fit() -> None:
    requests = PersistentBatch(1, 4 * (SPARE_BLOCKS + 9), BLOCK_SIZE, 50, torch.device("cpu"))
    sequence = running(1, [5], [7])
    tables(requests, [sequence])
    first = requests.tables_of(requests.update([sequence]))
    for block in range(8, 8 + SPARE_BLOCKS):
        sequence.block_table.append(block)
        assert tables(requests, [sequence]) == [sequence.block_table]
        assert requests.tables_of(requests.update([sequence])) is first
    sequence.block_table.append(90)
    assert tables(requests, [sequence]) == [sequence.block_table]
    assert requests.tables_of(requests.update([sequence])) is not first


def test_as_many_other_requests_have_their_tables_in_the_same_tensor() -> None:
    """Unless it is much wider than theirs: ranks are sent all of it."""
    requests = PersistentBatch(2, 4 * 20 * SPARE_BLOCKS, BLOCK_SIZE, 50, torch.device("cpu"))
    short, other = running(1, [5], [7]), running(2, [6], [4, 3])
    long = running(3, [6], list(range(100, 100 + 10 * SPARE_BLOCKS)))
    tensors = []
    for sequence in (short, other, long, short):
        assert tables(requests, [sequence]) == [sequence.block_table]
        tensors.append(requests.tables_of(requests.update([sequence]))[1])
    assert tensors[0] is tensors[1] and tensors[1] is not tensors[2]
    assert tensors[2].shape[1] > tensors[3].shape[1]


def test_tables_of_a_step_in_flight_on_a_gpu_are_not_written_to() -> None:
    """The meta device stands for one: its tensors have addresses of their own."""
    requests = PersistentBatch(2, 40, BLOCK_SIZE, 50, torch.device("meta"))
    sequences = [running(1, [5], [7]), running(2, [5], [3, 4])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        in_flight, _ = requests.tables_of(requests.update(sequences))
        sequences[0].block_table.append(8)
        new, _ = requests.tables_of(requests.update(sequences))
    assert in_flight.tolist() == [[7, 0], [3, 4]] and new.tolist() == [[7, 8], [3, 4]]


def test_a_row_is_reused_only_when_its_request_has_ended_and_no_step_uses_it() -> None:
    requests = batch(num_running=1)  # two rows
    first, second = running(1, [5], [3]), running(2, [6], [4])
    [row] = requests.update([first]).tolist()
    first.status, first.num_chunks_in_flight = Status.FINISHED, 1
    [other] = requests.update([second]).tolist()
    assert other != row
    first.num_chunks_in_flight = 0
    second.status = Status.FINISHED
    third, fourth = running(3, [8], [5]), running(4, [9], [6])
    assert sorted(requests.update([third, fourth]).tolist()) == sorted((row, other))


def test_a_row_has_its_requests_parameters() -> None:
    requests = batch()
    [row] = requests.update([running(1, [5, 6], [3], temperature=0.5, top_k=7, seed=2**64 - 1)]).tolist()
    assert requests.float_params[row, FloatParam.TEMPERATURE] == 0.5
    assert requests.int_params[row, IntParam.TOP_K] == 7
    assert requests.int_params[row, IntParam.SEED] == -1, "seeds wrap into int64"
    assert requests.int_params[row, IntParam.NUM_PROMPT_TOKENS] == 2
    assert not requests.is_constrained[row]


def test_a_draft_lies_behind_its_tokens_until_the_next_step_writes_the_accepted_ones() -> None:
    requests, drafting, plain = batch(), running(1, [5, 6], [3]), running(2, [7], [4])
    rows = requests.update([drafting, plain])
    assert not requests.has_drafts
    requests.write_drafts([Chunk(drafting, 1, 4, True, False, (8, 9, 10)), Chunk(plain, 0, 1, True, False)], rows)
    assert requests.tokens[rows[0], :5].tolist() == [5, 6, 8, 9, 10] and requests.has_drafts
    drafting.token_ids += [8, 11]  # one accepted token, and the one behind it
    requests.write_drafts([Chunk(drafting, 3, 1, True, False), Chunk(plain, 0, 1, True, False)], rows)
    assert requests.tokens[rows[0], :4].tolist() == [5, 6, 8, 11] and not requests.has_drafts
    assert requests.tokens[rows[1], :2].tolist() == [7, 0]
