"""Sampling against naive definitions, and the promise that a draw depends only on its own row."""

import itertools
import math
import random
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from engine.errors import GrammarError
from engine.execution.decode_batch import LogitRows
from engine.execution.draft_rows import DraftRows
from engine.execution.logit_masks import GRAMMAR_FAILED
from engine.execution.persistent_batch import PersistentBatch
from engine.execution.row_constraints import Int32s, RowConstraints
from engine.execution.sampler import PreparedRows, PromptLogprobs, Sampler
from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan import Chunk, RowFailed, Sampled
from engine.types import Request
from model.ops.interface import Ops
from model.ops.native.library import NativeLibrary
from model.ops.native.ops import NativeOps
from model.ops.reference.ops import ReferenceOps
from model.ops.reference.philox import uniforms
from model.sampling_batch import MIN_TEMPERATURE
from server.generation.generation_defaults import GenerationDefaults
from server.generation.sampling_params import sampling_params
from server.schemas import CompletionRequest
from server.schemas.validation import validate
from smoe import SamplingParams

VOCAB = 50
EOS = 2
BACKENDS: dict[str, Ops] = {"reference": ReferenceOps(), "native": NativeOps(NativeLibrary(), 1)}
REQUEST_IDS = itertools.count()

pytestmark = pytest.mark.parametrize("ops", BACKENDS.values(), ids=BACKENDS)


def sequence(prompt: list[int] | None = None, generated: list[int] | None = None, **params: object) -> Sequence:
    request = Request(next(REQUEST_IDS), prompt or [1, 4, 4], SamplingParams(**params).packed())  # type: ignore[arg-type]
    made = Sequence(request, (0, 0), 100)
    made.token_ids += generated or []
    made.num_chunks_in_flight = 1
    return made


def random_logits(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def sample(ops: Ops, logits: torch.Tensor, sequences: list[Sequence]) -> list[Sampled | RowFailed]:
    requests = PersistentBatch(len(sequences), 400, 16, VOCAB, torch.device("cpu"))
    positions = np.array([len(s.token_ids) - 1 for s in sequences])
    rows = LogitRows(sequences, requests.update(sequences), positions, len(sequences))
    sampler = Sampler(ops, requests, (EOS,))
    outcomes, *_ = sampler.finish(sampler.launch(logits.contiguous(), sampler.prepare(rows)))
    return [outcomes[s.request_id] for s in sequences]


def score(ops: Ops, logits: torch.Tensor, scored: Sequence) -> PromptLogprobs:
    """Score the prompt's tokens but the first, from logits [tokens - 1, V]."""
    requests = PersistentBatch(1, 100, 16, VOCAB, torch.device("cpu"))
    rows = requests.update([scored]).repeat(len(logits))
    sampler = Sampler(ops, requests, (EOS,))
    prepared = sampler.prepare(LogitRows([scored] * len(rows), rows, np.arange(len(rows)), 0))
    return sampler.finish(sampler.launch(logits, prepared))[1]


def draw(ops: Ops, logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    outcomes = sample(ops, logits, sequences)
    return [outcome.token_id for outcome in outcomes if isinstance(outcome, Sampled)]


def naive(logits: list[float], s: Sequence) -> int:
    """Sample one token by the definitions, in plain Python."""
    p = s.request.params
    values = naive_shape(logits, s)
    if p.temperature == 0:
        return max(range(VOCAB), key=lambda i: (values[i], -i))
    kept, probs = naive_nucleus(values, p)
    target = uniforms([p.seed], [len(s.token_ids)], [p.prompt_index], [p.choice_index])[0] * sum(probs[i] for i in kept)
    reached = 0.0
    for i in sorted(kept):
        reached += probs[i]
        if reached > target:
            return i
    raise AssertionError("unreachable")


def naive_shape(logits: list[float], s: Sequence) -> list[float]:
    p = s.request.params
    values = list(logits)
    for token in set(s.token_ids):
        values[token] = (
            values[token] / p.repetition_penalty if values[token] > 0 else values[token] * p.repetition_penalty
        )
    generated = s.token_ids[s.num_prompt_tokens :]
    for token in set(generated):
        values[token] -= p.frequency_penalty * generated.count(token) + p.presence_penalty
    for token, bias in p.logit_bias.items():
        values[token] += bias
    if p.allowed_token_ids is not None:
        values = [v if i in p.allowed_token_ids else -math.inf for i, v in enumerate(values)]
    for *start, last in p.bad_words:
        if start == generated[max(0, len(generated) - len(start)) :]:
            values[last] = -math.inf
    if len(generated) < p.min_tokens:
        for token in (EOS, *p.stop_token_ids):
            values[token] = -math.inf
    return values


def naive_nucleus(values: list[float], p: SamplingParams) -> tuple[list[int], list[float]]:
    top = max(values)
    weights = [math.exp((v - top) / p.temperature) for v in values]
    probs = [w / sum(weights) for w in weights]
    probs = [q if q >= p.min_p * max(probs) else 0.0 for q in probs]
    order = sorted(range(VOCAB), key=lambda i: (-probs[i], i))
    if p.top_k:
        order = order[: p.top_k]
    kept, mass, total = [], 0.0, sum(probs[i] for i in order)
    for i in order:
        if mass < p.top_p * total or not kept:
            kept.append(i)
        mass += probs[i]
    return kept, probs


def random_params(rng: random.Random) -> dict[str, object]:
    return {
        "temperature": rng.choice([0.0, 0.3, 1.0, 1.7]),
        "top_k": rng.choice([0, 1, 5, 100]),
        "top_p": rng.choice([1.0, 0.9, 0.3]),
        "min_p": rng.choice([0.0, 0.05, 0.5]),
        "repetition_penalty": rng.choice([1.0, 1.3, 0.7]),
        "frequency_penalty": rng.choice([0.0, 0.5, -0.5]),
        "presence_penalty": rng.choice([0.0, 1.0]),
        "logit_bias": rng.choice([{}, {3: 5.0, 9: -100.0}]),
        "allowed_token_ids": rng.choice([None, tuple(range(3, 40))]),
        "bad_words": rng.choice([(), ((5,), (9, 3)), tuple((i, j) for i in range(VOCAB) for j in range(3, 20))]),
        "min_tokens": rng.choice([0, 10]),
        "stop_token_ids": (7,),
        "seed": rng.randrange(-(2**63), 2**63),
        "choice_index": rng.randrange(8),
    }


def test_every_parameter_does_what_its_definition_says(ops: Ops, scale: int) -> None:
    rng = random.Random(0)
    for trial in range(150 * scale):
        rows = [
            sequence(generated=rng.choices(range(VOCAB), k=rng.randint(0, 12)), **random_params(rng)) for _ in range(4)
        ]
        logits = random_logits(trial, 4)
        if trial % 3 == 0:
            logits = logits.round()  # many ties
        assert draw(ops, logits, rows) == [naive(row.tolist(), s) for row, s in zip(logits, rows, strict=True)]


def test_a_row_draws_the_same_alone_and_in_any_batch(ops: Ops) -> None:
    rng = random.Random(1)
    rows = [sequence(generated=rng.choices(range(VOCAB), k=5), **random_params(rng)) for _ in range(16)]
    logits = random_logits(5, 16)
    assert draw(ops, logits, rows) == [draw(ops, logits[i : i + 1], [s])[0] for i, s in enumerate(rows)]


def test_draws_follow_the_distribution(ops: Ops) -> None:
    logits = random_logits(3)
    probs = torch.softmax(logits[0].double(), -1)
    n = 20_000
    counts = torch.zeros(VOCAB)
    for first in range(0, n, 200):
        rows = [sequence(seed=i) for i in range(first, first + 200)]
        counts += torch.bincount(torch.tensor(draw(ops, logits.expand(200, -1), rows)), minlength=VOCAB)
    deviation = (counts - n * probs) / (n * probs * (1 - probs)).sqrt()
    assert deviation.abs().max() < 4.5


def test_greedy_ties_go_to_the_lower_id(ops: Ops) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [30, 8, 41]] = 1.0
    assert draw(ops, logits, [sequence(temperature=0.0)]) == [8]


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 9e-5, MIN_TEMPERATURE, 1.1e-4])
def test_a_temperature_is_greedy_in_the_api_where_it_is_in_process(ops: Ops, temperature: float) -> None:
    logits = torch.zeros(20, VOCAB)
    logits[:, 8] = 1e-5  # at temperature 1e-4 every token is nearly as likely
    request = validate(CompletionRequest, {"model": "m", "prompt": "a", "temperature": temperature})
    by_api = [
        sampling_params(request, max_tokens=1, seed=seed, prompt_index=0, choice_index=0, defaults=GenerationDefaults())
        for seed in range(20)
    ]
    tokens = draw(ops, logits, [sequence(temperature=temperature, seed=seed) for seed in range(20)])
    assert draw(ops, logits, [sequence(**msgspec.structs.asdict(params)) for params in by_api]) == tokens
    assert (set(tokens) == {8}) == (temperature < 1e-4)


WAYS_TO_DRAW = [{}, {"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.3}, {"top_k": 5, "top_p": 1e-9}]


@pytest.mark.parametrize("params", WAYS_TO_DRAW, ids=str)
def test_a_row_with_nan_or_infinity_fails_alone(ops: Ops, params: dict[str, float]) -> None:
    logits = random_logits(0, 5)
    logits[1, 5] = float("nan")
    logits[2, 0] = float("inf")
    logits[3] = float("-inf")
    outcomes = sample(ops, logits, [sequence(seed=i, **params) for i in range(5)])
    assert [isinstance(outcome, RowFailed) for outcome in outcomes] == [False, True, True, True, False]


@pytest.mark.parametrize("params", WAYS_TO_DRAW, ids=str)
def test_constraints_that_leave_no_token_fail_the_row_with_their_reason(ops: Ops, params: dict[str, float]) -> None:
    impossible = sequence(allowed_token_ids=(EOS,), min_tokens=5, **params)
    outcome = sample(ops, random_logits(0), [impossible])[0]
    assert isinstance(outcome, RowFailed)
    assert "no token" in outcome.message


def test_logprobs_come_from_the_raw_logits_and_ties_go_to_the_lower_id(ops: Ops) -> None:
    logits = random_logits(0, 1)
    logits[0, [3, 40]] = 20.0
    outcome = sample(ops, logits, [sequence(temperature=0.2, logit_bias={3: -50.0}, num_logprobs=2)])[0]
    assert isinstance(outcome, Sampled) and outcome.logprobs is not None
    values = logits[0].double()
    expected = (values - values.logsumexp(-1)).tolist()
    assert outcome.logprobs.top_ids == [3, 40]
    assert outcome.logprobs.top_logprobs == pytest.approx([expected[3], expected[40]], abs=1e-6)
    assert outcome.logprobs.logprob == pytest.approx(expected[outcome.token_id], abs=1e-6)


def test_zero_logprobs_give_the_token_alone(ops: Ops) -> None:
    [outcome] = sample(ops, random_logits(0), [sequence(num_logprobs=0)])
    assert isinstance(outcome, Sampled) and outcome.logprobs is not None and outcome.logprobs.top_ids == []


def test_a_prompt_is_scored_by_the_raw_logits(ops: Ops) -> None:
    prompt, logits = [5, 9, 0, 49], random_logits(1, 3)
    scored = sequence(prompt, prompt_logprobs=True, num_logprobs=2, temperature=0.3, logit_bias={9: -100.0})
    scores = score(ops, logits, scored)[scored.request_id]
    expected = torch.log_softmax(logits.double(), -1)
    assert [position.token_id for position in scores] == prompt[1:]
    for row, position in zip(expected, scores, strict=True):
        assert position.logprob == pytest.approx(float(row[position.token_id]), abs=1e-6)
        assert position.top_ids == row.topk(2).indices.tolist()


def test_ids_beyond_the_vocabulary_are_ignored(ops: Ops) -> None:
    odd = sequence(
        temperature=0.0, logit_bias={VOCAB: 5.0, 10**9: 100.0}, allowed_token_ids=(VOCAB + 40, 7), stop_token_ids=(99,)
    )
    assert draw(ops, random_logits(0), [odd]) == [7]


def test_fixed_constraints_are_prepared_once_and_hold_in_later_steps(ops: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[int] = []
    biases = RowConstraints.biases

    def counted(self: RowConstraints, generated: list[int], num_generated: int, eos_ids: Int32s) -> object:
        prepared.append(num_generated)
        return biases(self, generated, num_generated, eos_ids)

    monkeypatch.setattr(RowConstraints, "biases", counted)
    row = sequence(temperature=0.0, logit_bias={9: 100.0, 8: 50.0}, bad_words=((9,),), min_tokens=1)
    requests = PersistentBatch(1, 100, 16, VOCAB, torch.device("cpu"))
    sampler = Sampler(ops, requests, (EOS,))
    rows = requests.update([row])
    for step in range(5):
        parameters = sampler.prepare(LogitRows([row], rows, np.array([2 + step]), 1))
        [outcome] = sampler.finish(sampler.launch(random_logits(step), parameters))[0].values()
        assert isinstance(outcome, Sampled) and outcome.token_id == 8
        row.token_ids.append(8)
    assert prepared == [0, 1]  # min_tokens ends at the second token


class OddOrEven:
    """A grammar of odd token ids behind an even number of generated tokens, and of even ones behind an odd number."""

    def bitmask(self, token_ids: list[int], start: int) -> bytes:
        if len(token_ids) - start > 300:
            raise GrammarError
        return (b"\xaa" if (len(token_ids) - start) % 2 == 0 else b"\x55") * 8


def test_kept_parameters_sample_like_new_ones_in_each_step(ops: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    """Penalties, a grammar, min_tokens and log probabilities, over enough steps to widen the history. The grammar fails
    in the last step."""
    filled: list[int] = []
    fill = Sampler._fill_new

    def counted(sampler: Sampler, rows: LogitRows) -> PreparedRows:
        filled.append(int(rows.positions[0]))
        return fill(sampler, rows)

    monkeypatch.setattr(Sampler, "_fill_new", counted)
    penalties = {"frequency_penalty": 0.2, "repetition_penalty": 1.1, "num_logprobs": 2}
    running = [sequence(seed=1, **penalties), sequence(seed=2), sequence(seed=3, min_tokens=290, stop_token_ids=(7,))]
    running[1].matcher = OddOrEven()  # type: ignore[assignment]
    requests = PersistentBatch(3, 400, 16, VOCAB, torch.device("cpu"))
    sampler, rows = Sampler(ops, requests, (EOS,)), requests.update(running)
    logits = random_logits(8, 3)
    ends: list[int] = []
    for step in range(302):
        positions = np.array([2 + step] * 3)
        outcomes, *_ = sampler.finish(sampler.launch(logits, sampler.prepare(LogitRows(running, rows, positions, 3))))
        if step % 20 in (0, 1) or step in (254, 255, 289, 290):
            num_filled = len(filled)
            assert list(outcomes.values()) == sample(ops, logits, running), step
            del filled[num_filled:]
        for made in running:
            outcome = outcomes[made.request_id]
            made.token_ids.append(outcome.token_id if isinstance(outcome, Sampled) else 0)
        ends.append(running[2].token_ids[-1])
    assert outcomes[running[1].request_id] == GRAMMAR_FAILED
    assert not {EOS, 7} & set(ends[:290])
    assert [position - 2 for position in filled] == [0, 290, 301]


def test_rows_behind_drafted_tokens_sample_as_if_these_were_known(ops: Ops) -> None:
    """Each row of a draft gives the token of a request that has the tokens before it. The drafted tokens stay where
    they are, and the request beside it gets its token as always."""
    draft = (7, 8, 7)
    fields: dict[str, Any] = {"temperature": 0.9, "frequency_penalty": 1.5, "repetition_penalty": 1.4, "min_tokens": 3}
    bad_words = tuple((8, token_id) for token_id in range(VOCAB) if token_id not in (10, 11))
    drafting, plain = (sequence(seed=seed, bad_words=bad_words, **fields) for seed in (1, 2))
    logits = random_logits(3, rows=5)
    requests = PersistentBatch(2, 100, 16, VOCAB, torch.device("cpu"))
    rows = requests.update([drafting, plain])
    num_tokens = len(drafting.token_ids)
    chunks = [Chunk(drafting, num_tokens - 1, 4, True, False, draft), Chunk(plain, num_tokens - 1, 1, True, False)]
    requests.write_drafts(chunks, rows)
    positions = np.array([*range(num_tokens - 1, num_tokens + 3), num_tokens - 1])
    owners = [drafting] * 4 + [plain]
    logit_rows = LogitRows(owners, rows[[0, 0, 0, 0, 1]], positions, 5, (DraftRows(0, draft),))
    sampler = Sampler(ops, requests, (EOS,))
    pending = sampler.launch(logits, sampler.prepare(logit_rows))
    token_ids = pending.results.wait()[0]
    assert requests.tokens[rows[0], num_tokens : num_tokens + 4].tolist() == [*draft, 0]
    assert requests.tokens[rows[1], num_tokens] == token_ids[4]
    for place in range(5):
        alone = sequence(seed=2 if place == 4 else 1, bad_words=bad_words, **fields)
        alone.token_ids += draft[:place] if place < 4 else ()
        [outcome] = sample(ops, logits[place : place + 1], [alone])
        assert isinstance(outcome, Sampled) and outcome.token_id == token_ids[place], place
