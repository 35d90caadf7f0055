"""A batch with drafts, built in loops, equals the one that build_batch() gives."""

import random
import weakref
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from engine.execution.draft_batch import is_decode_step
from engine.execution.input_batch import BatchBuilder, build_batch
from engine.execution.persistent_batch import PersistentBatch
from engine.scheduling.sequence import Sequence, Status
from engine.scheduling.step_plan import Chunk, StepPlan
from engine.types import Request, SamplingParams
from model.config import ModelConfig
from model.forward_batch import ForwardBatch, Routing
from tests.support.kernels.attention_cases import Heads

CONFIG: ModelConfig = replace(Heads().config, num_experts=4, experts_per_token=2)
BLOCK_SIZE, MAX_LEN = 4, 60


def _sequence(rng: random.Random, number: int, **options: Any) -> Sequence:
    prompt = [rng.randrange(3, 32) for _ in range(rng.randint(1, 10))]
    request = Request(number, prompt, SamplingParams(max_tokens=30), **options)
    sequence = Sequence(request, (0, number), 30)
    sequence.status = Status.RUNNING
    sequence.block_table = rng.sample(range(1, 200), MAX_LEN // BLOCK_SIZE)
    return sequence


def _chunk(rng: random.Random, sequence: Sequence) -> Chunk:
    draft = tuple(rng.randrange(3, 32) for _ in range(rng.choice([0, 0, 1, 3, 5])))
    return Chunk(sequence, sequence.num_tokens - 1, 1 + len(draft), samples=True, is_prefill=False, draft=draft)


@pytest.mark.parametrize("seed", range(8))
def test_a_batch_with_drafts_equals_one_of_any_chunks(seed: int) -> None:
    """In turns with steps without drafts, while accepted tokens are appended."""
    rng = random.Random(seed)
    rows = PersistentBatch(6, MAX_LEN, BLOCK_SIZE, 32, torch.device("cpu"))
    builder = BatchBuilder(rows, CONFIG)
    sequences = [_sequence(rng, number) for number in range(rng.randint(1, 6))]
    num_drafted = 0
    for _ in range(6):
        chunks = tuple(_chunk(rng, sequence) for sequence in sequences)
        ours = builder.build(StepPlan(chunks))
        num_drafted += sum(len(chunk.draft) for chunk in chunks)
        starts, lengths = np.array([c.start for c in chunks]), np.array([c.length for c in chunks])
        theirs = build_batch(chunks, rows.update(sequences), starts, lengths, rows, CONFIG)
        _assert_same(ours.forward, theirs.forward)
        assert ours.forward.token_ids.tolist() == [t for c in chunks for t in (c.sequence.token_ids[-1], *c.draft)]
        assert ours.logits.sequences == theirs.logits.sequences
        assert ours.logits.rows.tolist() == theirs.logits.rows.tolist()
        assert ours.logits.positions.tolist() == theirs.logits.positions.tolist()
        assert ours.logits.num_sampled == theirs.logits.num_sampled and ours.logits.drafted == theirs.logits.drafted
        for chunk in chunks:
            chunk.sequence.token_ids += [*chunk.draft[: rng.randint(0, len(chunk.draft))], rng.randrange(3, 32)]
            if not chunk.draft:  # its token is appended where it is sampled
                row = ours.logits.rows[ours.logits.sequences.index(chunk.sequence)]
                rows.tokens[row, chunk.start + 1] = chunk.sequence.token_ids[-1]
    assert num_drafted > 0


def test_steps_of_as_many_rows_share_their_arrays_and_keep_no_options_of_a_request() -> None:
    """A request that chooses its experts is beside others in one step of three."""
    rng = random.Random(9)
    rows = PersistentBatch(6, MAX_LEN, BLOCK_SIZE, 32, torch.device("cpu"))
    builder = BatchBuilder(rows, CONFIG)
    usual = [_sequence(rng, number) for number in range(2)]
    choosing = _sequence(rng, 2, experts_per_token=1, expert_mask=[[True, False, True, True]] * CONFIG.num_layers)
    forwards = []
    for sequences in (usual, [usual[0], choosing], usual):
        chunks = tuple(
            Chunk(sequence, sequence.num_tokens - 1, 3, samples=True, is_prefill=False, draft=(5, 6))
            for sequence in sequences
        )
        ours = builder.build(StepPlan(chunks)).forward
        starts, lengths = np.array([c.start for c in chunks]), np.array([c.length for c in chunks])
        _assert_same(ours, build_batch(chunks, rows.update(sequences), starts, lengths, rows, CONFIG).forward)
        forwards.append(ours)
    assert forwards[0].logits is forwards[1].logits is forwards[2].logits
    assert forwards[0].token_ids is forwards[2].token_ids


def test_the_memory_grows_with_the_rows_of_a_step() -> None:
    rng = random.Random(3)
    rows = PersistentBatch(6, MAX_LEN, BLOCK_SIZE, 32, torch.device("cpu"))
    builder, sequences = BatchBuilder(rows, CONFIG), [_sequence(rng, number) for number in range(4)]
    for length in (3, 20, 3):  # 16, 84 and 16 rows
        draft = tuple(rng.randrange(3, 32) for _ in range(length))
        chunks = tuple(Chunk(s, s.num_tokens - 1, 1 + length, True, False, draft) for s in sequences)
        ours = builder.build(StepPlan(chunks)).forward
        starts, lengths = np.array([c.start for c in chunks]), np.array([c.length for c in chunks])
        _assert_same(ours, build_batch(chunks, rows.update(sequences), starts, lengths, rows, CONFIG).forward)


def test_no_kept_batch_holds_block_tables_that_were_made_anew() -> None:
    """A step of two requests, then of one whose table has outgrown the memory, and none of two again."""
    rng = random.Random(4)
    rows = PersistentBatch(6, 100 * BLOCK_SIZE, BLOCK_SIZE, 32, torch.device("cpu"))
    builder, sequences = BatchBuilder(rows, CONFIG), [_sequence(rng, number) for number in range(2)]
    tables = []
    for step in (sequences, sequences[:1]):
        chunks = tuple(Chunk(s, s.num_tokens - 1, 3, True, False, (5, 6)) for s in step)
        tables.append(weakref.ref(builder.build(StepPlan(chunks)).forward.block_tables))
        sequences[0].block_table = list(range(1, 90))
    before, after = tables
    assert before() is None and after() is not None


def _assert_same(ours: ForwardBatch, theirs: ForwardBatch) -> None:
    for field in fields(ForwardBatch):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name == "logits":
            assert mine is None or mine.shape == (len(theirs.logit_rows), CONFIG.vocab_size)
        elif isinstance(mine, torch.Tensor):
            assert mine.dtype == other.dtype and torch.equal(mine, other), field.name
        elif isinstance(mine, Routing):
            assert torch.equal(mine.experts_per_token, other.experts_per_token)
            for our_part, their_part in ((mine.masks, other.masks), (mine.mask_rows, other.mask_rows)):
                assert (our_part is None) == (their_part is None)
                assert our_part is None or their_part is None or torch.equal(our_part, their_part)
            assert mine.expert_ids.shape == other.expert_ids.shape
        else:
            assert mine is None and other is None, field.name


def test_a_chunk_that_computes_more_than_its_last_token_is_not_of_a_decode_step() -> None:
    sequence = _sequence(random.Random(1), 0)
    decoding = Chunk(sequence, 3, 3, samples=True, is_prefill=False, draft=(5, 6))
    assert is_decode_step((decoding, decoding.without_draft()))
    assert not is_decode_step((decoding, Chunk(sequence, 2, 2, samples=True, is_prefill=True)))
    assert not is_decode_step((decoding, Chunk(sequence, 0, 1, samples=False, is_prefill=True)))
