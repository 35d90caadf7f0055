"""Biases and masks of a row against a loop over the vocabulary."""

import random
from collections.abc import Sequence as SequenceOf
from typing import Any

import numpy as np
import pytest
import torch

from engine.errors import GrammarError
from engine.execution.logit_masks import GRAMMAR_FAILED, LogitMasks
from engine.execution.row_constraints import RowConstraints
from engine.scheduling.sequence import Sequence
from engine.types import Request
from model.sampling_batch import IntParam
from smoe import SamplingParams

CPU = torch.device("cpu")
VOCAB, EOS = 77, 2


def added(masks: LogitMasks, generated: list[int], **params: object) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    sequence = sequence_of(generated, **params)
    row = np.full(len(IntParam), -1)
    add(masks, sequence, row)
    return row


def add(masks: LogitMasks, sequence: Sequence, row: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    masks.add(sequence, RowConstraints(sequence.request.params, VOCAB), sequence.num_generated, row)


def sequence_of(generated: list[int], **params: object) -> Sequence:
    made = Sequence(Request(1, [9, 9], SamplingParams(**params).packed()), (0, 0), 100)  # type: ignore[arg-type]
    made.token_ids += generated
    return made


def allowed_by(masks: LogitMasks, row: SequenceOf[int]) -> list[int]:
    words = masks.masks(CPU)
    assert words is not None
    return [i for i in range(VOCAB) if words[row[IntParam.MASK_ROW], i // 32].item() >> (i % 32) & 1]


def test_each_row_has_its_own_part_of_the_biases_and_its_own_mask() -> None:
    masks = LogitMasks(VOCAB, (EOS,))
    first = added(masks, [], logit_bias={5: 1.5, VOCAB: 9.0})
    second = added(masks, [], min_tokens=1, stop_token_ids=(7,))
    third = added(masks, [], allowed_token_ids=(0, 31, 32, 76, VOCAB + 3))
    ids, values = (tensor.tolist() for tensor in masks.biases(CPU))
    parts = [
        list(zip(ids, values, strict=True))[r[IntParam.FIRST_BIAS] : r[IntParam.END_BIAS]] for r in (first, second)
    ]
    assert parts == [[(5, 1.5)], [(EOS, float("-inf")), (7, float("-inf"))]]
    assert first[IntParam.MASK_ROW] == second[IntParam.MASK_ROW] == -1
    assert allowed_by(masks, third) == [0, 31, 32, 76]


def test_the_last_id_of_a_bad_word_is_forbidden_behind_the_others() -> None:
    rng = random.Random(0)
    for _ in range(200):
        generated = rng.choices(range(4), k=rng.randint(0, 5))
        words = tuple(tuple(rng.choices(range(4), k=rng.randint(1, 3))) for _ in range(5))
        masks = LogitMasks(VOCAB, (EOS,))
        added(masks, generated, bad_words=words)
        text = "".join(map(str, generated))
        forbidden = [word[-1] for word in words if text.endswith("".join(map(str, word[:-1])))]
        assert masks.biases(CPU)[0].tolist() == forbidden


def test_the_tokens_of_the_prompt_are_not_before_a_bad_word() -> None:
    masks = LogitMasks(VOCAB, (EOS,))
    added(masks, [], bad_words=((9, 5), (9, 9, 6)))
    assert masks.biases(CPU)[0].tolist() == []


@pytest.mark.parametrize(("words", "num_read"), [((), 0), (((5,),), 0), (((1, 2, 5), (2, 6)), 2)])
def test_a_row_reads_no_more_of_a_long_answer_than_its_bad_words_need(
    words: tuple[tuple[int, ...], ...], num_read: int
) -> None:
    class Counted(list[int]):
        num_read = 0

        def __getitem__(self, place: Any) -> Any:
            found = super().__getitem__(place)
            Counted.num_read += len(found) if isinstance(found, list) else 1
            return found

    masks, sequence = LogitMasks(VOCAB, (EOS,)), sequence_of([1, 2] * 1000, bad_words=words, logit_bias={3: 1.0})
    sequence.token_ids = Counted(sequence.token_ids)
    add(masks, sequence, np.full(len(IntParam), -1))
    assert masks.biases(CPU)[0].tolist() == [3, *(word[-1] for word in words)]
    assert Counted.num_read == num_read


@pytest.mark.parametrize("allowed", [None, (3, 4, 40)])
def test_a_grammar_restricts_further_and_its_failure_is_kept_by_request(allowed: tuple[int, ...] | None) -> None:
    class Ready:
        def prepare(self, token_ids: SequenceOf[int], start: int) -> bool:
            return True

        def wait(self, timeout_s: float) -> None:
            pass

        def look_ahead(self, token_ids: SequenceOf[int], start: int) -> None:
            pass

        def draft_bitmask(self, draft: SequenceOf[int]) -> bytes:
            return b"\x0f" * 12

    class OddTokens(Ready):
        def bitmask(self, token_ids: SequenceOf[int], start: int) -> bytes:
            return b"\xaa" * 12

    class Broken(Ready):
        def bitmask(self, token_ids: SequenceOf[int], start: int) -> bytes:
            raise GrammarError

    masks, row = LogitMasks(VOCAB, (EOS,)), np.full(len(IntParam), -1)
    sequence = sequence_of([], allowed_token_ids=allowed)
    sequence.matcher = OddTokens()
    add(masks, sequence, row)
    assert allowed_by(masks, row.tolist()) == [i for i in allowed or range(VOCAB) if i % 2]
    assert not masks.failed
    masks.add(sequence, RowConstraints(sequence.request.params, VOCAB), 1, row, guessed=(5,))
    assert allowed_by(masks, row.tolist()) == [i for i in allowed or range(VOCAB) if i % 8 < 4]
    sequence.matcher = Broken()
    add(masks, sequence, row)
    assert masks.failed == {1: GRAMMAR_FAILED}


@pytest.mark.parametrize("allowed", [None, (3, 4, 40)])
def test_kept_masks_follow_their_grammars_until_one_fails(allowed: tuple[int, ...] | None) -> None:
    class OneToken:
        """Allows the token whose id is the number of generated tokens."""

        def bitmask(self, token_ids: SequenceOf[int], start: int) -> bytes:
            if len(token_ids) - start > 5:
                raise GrammarError
            return (1 << (len(token_ids) - start)).to_bytes(12, "little")

    masks, fixed, changing = LogitMasks(VOCAB, (EOS,)), np.full(len(IntParam), -1), np.full(len(IntParam), -1)
    add(masks, sequence_of([], allowed_token_ids=(6, 7)), fixed)
    assert not masks.has_grammars
    sequence = sequence_of([9], allowed_token_ids=allowed)
    sequence.matcher = OneToken()  # type: ignore[assignment]
    add(masks, sequence, changing)
    assert masks.has_grammars
    tensor = masks.masks(CPU)
    for count in range(1, 6):
        assert allowed_by(masks, changing.tolist()) == [count] * (count in (allowed or range(VOCAB)))
        assert allowed_by(masks, fixed.tolist()) == [6, 7] and not masks.failed
        sequence.token_ids.append(9)
        assert masks.next_masks() == (count < 5)
    assert masks.failed == {1: GRAMMAR_FAILED}
    assert tensor is not None and tensor.data_ptr() == masks.masks(CPU).data_ptr()  # type: ignore[union-attr]
