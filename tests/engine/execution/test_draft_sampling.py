"""Rows of steps with drafts, whose parameters are kept, sample what new parameters would give."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from engine.errors import GrammarError
from engine.execution.decode_batch import LogitRows
from engine.execution.draft_rows import draft_rows
from engine.execution.logit_masks import GRAMMAR_FAILED
from engine.execution.persistent_batch import PersistentBatch
from engine.execution.sampler import PreparedRows, Sampler
from engine.scheduling.sequence import Sequence, Status
from engine.scheduling.step_plan import Chunk
from engine.types import Request
from model.ops.native.library import NativeLibrary
from model.ops.native.ops import NativeOps
from smoe import SamplingParams

VOCAB, EOS = 50, 2
OPS = NativeOps(NativeLibrary(), 1)


class Parity:
    """A grammar of the tokens with the parity of the number of generated ones."""

    fails = False

    def __init__(self) -> None:
        self._num_generated = 0

    def bitmask(self, token_ids: list[int], start: int) -> bytes:
        self._num_generated = len(token_ids) - start
        if self.fails:
            raise GrammarError
        return self._mask(0)

    def draft_bitmask(self, draft: tuple[int, ...]) -> bytes:
        return self._mask(len(draft))

    def _mask(self, num_guessed: int) -> bytes:
        return (b"\x55" if (self._num_generated + num_guessed) % 2 else b"\xaa") * 8


def _sequence(request_id: int, has_grammar: bool, **params: Any) -> Sequence:
    params = {"temperature": 0.9, "seed": request_id} | params
    made = Sequence(Request(request_id, [1, 4, 4], SamplingParams(**params).packed()), (0, 0), 100)
    made.status, made.matcher = Status.RUNNING, Parity() if has_grammar else None  # type: ignore[assignment]
    return made


def _prepared(sampler: Sampler, requests: PersistentBatch, sequences: list[Sequence], drafts: list[Any]) -> Any:
    rows = requests.update(list(sequences))
    chunks = [Chunk(s, s.num_tokens - 1, 1 + len(d), True, False, d) for s, d in zip(sequences, drafts, strict=True)]
    owners = [chunk.sequence for chunk in chunks for _ in range(chunk.length)]
    positions = np.array([p for chunk in chunks for p in range(chunk.start, chunk.start + chunk.length)])
    row_indices = np.repeat(rows, [chunk.length for chunk in chunks])
    return sampler.prepare(LogitRows(owners, row_indices, positions, len(owners), draft_rows(chunks)))


def _logits(rng: random.Random, num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(rng.randrange(1 << 30))) * 3


def _alone(logits: torch.Tensor, sequence: Sequence, draft: tuple[int, ...], has_grammar: bool) -> Any:
    """Return what a new sampler gives for the row behind a part of a draft, as the text of a request."""
    made = _sequence(sequence.request_id, has_grammar)
    made.request = sequence.request
    made.token_ids = [*sequence.token_ids, *draft]
    requests = PersistentBatch(1, 100, 16, VOCAB, torch.device("cpu"))
    sampler = Sampler(OPS, requests, (EOS,))
    rows = LogitRows([made], requests.update([made]), np.array([made.num_tokens - 1]), 1)
    return sampler.finish(sampler.launch(logits.clone(), sampler.prepare(rows)))[0][made.request_id]


@pytest.mark.parametrize(("seed", "longest"), [(0, 3), (1, 3), (2, 3), (3, 25), (4, 25), (5, 3)])
def test_each_row_samples_as_if_the_guesses_before_it_were_known(seed: int, longest: int) -> None:
    """Over steps of few sizes, so that parameters are kept, with requests that come and go; with drafts of 25 tokens
    the memory grows in between. Every token of a request without a draft, and every right one behind a draft, is then
    in the persistent batch."""
    rng = random.Random(seed)
    requests = PersistentBatch(3, 100, 16, VOCAB, torch.device("cpu"))
    sampler = Sampler(OPS, requests, (EOS,))
    running = [_sequence(number, number % 2 == 0, num_logprobs=rng.choice([None, 2])) for number in range(3)]
    prepared_rows = []
    for step in range(30):
        if step % 7 == 6:
            ended = running.pop(rng.randrange(3))
            ended.status = Status.FINISHED
            running.append(_sequence(10 + step, rng.random() < 0.5, temperature=rng.choice([0.0, 0.9])))
        drafts = [tuple(rng.randrange(3, 49) for _ in range(rng.choice([0, 2, longest]))) for _ in running]
        if not any(drafts):
            continue
        prepared: PreparedRows = _prepared(sampler, requests, running, drafts)
        prepared_rows.append(prepared.on_device)
        logits = _logits(rng, len(prepared.rows.sequences))
        pending = sampler.launch(logits, prepared)
        token_ids, first = pending.results.wait()[0], 0
        sampler.finish(pending)
        for sequence, draft in zip(running, drafts, strict=True):
            row = requests.update(list(running))[running.index(sequence)]
            for place in range(len(draft) + 1):
                alone = _alone(
                    logits[first + place : first + place + 1], sequence, draft[:place], bool(sequence.matcher)
                )
                assert alone.token_id == token_ids[first + place], (step, place)
                assert requests.tokens[row, sequence.num_tokens + place] == token_ids[first + place]
            sequence.token_ids.append(token_ids[first])
            first += len(draft) + 1
    assert len(set(prepared_rows)) <= 0.8 * len(prepared_rows), "no parameters were kept"


def test_a_failed_grammar_fails_its_request_alone() -> None:
    requests = PersistentBatch(2, 100, 16, VOCAB, torch.device("cpu"))
    sampler, running = Sampler(OPS, requests, (EOS,)), [_sequence(1, True), _sequence(2, True)]
    running[1].matcher.fails = True  # type: ignore[union-attr]
    prepared: PreparedRows = _prepared(sampler, requests, running, [(5, 6), ()])
    outcomes, _, behind = sampler.finish(sampler.launch(_logits(random.Random(1), 4), prepared))
    assert outcomes[2] == GRAMMAR_FAILED and outcomes[1] != GRAMMAR_FAILED and list(behind) == [1]


@pytest.mark.parametrize("params", [{"presence_penalty": 0.5}, {"logit_bias": {5: 1.0}}, {"min_tokens": 3}])
def test_penalties_and_biases_are_not_left_out(params: dict[str, Any]) -> None:
    """Beside a request without, whose parameters were kept before."""
    requests = PersistentBatch(3, 100, 16, VOCAB, torch.device("cpu"))
    sampler, first, second = Sampler(OPS, requests, (EOS,)), _sequence(1, False), _sequence(2, False)
    assert not _prepared(sampler, requests, [first, second], [(5, 6), ()]).has_copied_histories
    special = _sequence(3, False, **params)
    prepared: PreparedRows = _prepared(sampler, requests, [first, special], [(5, 6), ()])
    assert prepared.has_copied_histories
    assert prepared.on_device.has_penalties or len(prepared.on_device.bias_ids)


def test_drafts_of_any_length_share_the_parameters_of_their_request() -> None:
    requests = PersistentBatch(2, 100, 16, VOCAB, torch.device("cpu"))
    sampler, running = Sampler(OPS, requests, (EOS,)), [_sequence(1, False)]
    longer, shorter = (_prepared(sampler, requests, running, [(5,) * length]).on_device for length in (9, 4))
    assert longer.int_params.data_ptr() == shorter.int_params.data_ptr() and len(shorter.int_params) == 5
    assert _prepared(sampler, requests, running, [(5,) * 9]).on_device is longer
