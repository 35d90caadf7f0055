"""Rows of a step that become embeddings, and vectors made of hidden states."""

from typing import Any, cast

import numpy as np
import pytest
import torch

from engine.execution.embeddings import PendingEmbeddings, finish_embeddings, hidden_rows, unit_vector
from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan import Chunk
from engine.types import Request, SamplingParams

CPU = torch.device("cpu")


def chunk(request_id: int, start: int, length: int, prompt: int, embedding_len: int | None = 3) -> Chunk:
    request = Request(request_id, [5] * prompt, SamplingParams(max_tokens=0), embedding_len=embedding_len)
    return Chunk(Sequence(request, (0, request_id), 0), start, length, samples=False, is_prefill=True)


def test_only_the_end_of_a_prompt_to_embed_is_pooled() -> None:
    chunks = (chunk(1, 0, 4, 4), chunk(2, 0, 3, 9), chunk(3, 2, 2, 4, embedding_len=None), chunk(4, 6, 1, 7))
    rows = hidden_rows(chunks, 5, CPU)
    assert rows is not None and rows.rows.tolist() == [3, 9]
    assert (rows.states.shape, rows.states.dtype) == ((2, 5), torch.float32)
    assert hidden_rows(chunks[1:3], 5, CPU) is None


def test_a_vector_keeps_its_direction_and_gets_length_1() -> None:
    assert unit_vector(np.array([3, 4], dtype=np.float32)).tolist() == pytest.approx([0.6, 0.8])
    assert unit_vector(np.array([3e30, -4e30], dtype=np.float32)).tolist() == pytest.approx([0.6, -0.8])
    assert unit_vector(np.zeros(2, dtype=np.float32)).tolist() == [0, 0]
    assert unit_vector(np.array([2], dtype=np.float32)).dtype == np.dtype("<f4")


def test_states_with_nan_or_inf_fail_their_own_requests() -> None:
    class Arrived:
        def wait(self) -> Any:
            return np.array([[0, 2, 0, 9], [1, 2, 3, np.nan], [np.inf, 0, 0, 0]], dtype=np.float32)

    pending = PendingEmbeddings([chunk(1, 0, 1, 1), chunk(2, 0, 1, 1), chunk(3, 0, 1, 1)], cast("Any", Arrived()))
    embeddings, failed = finish_embeddings(pending)
    assert failed == [2, 3]
    assert {key: np.frombuffer(value, "<f4").tolist() for key, value in embeddings.items()} == {1: [0, 1, 0]}
