"""Expert statistics against a loop over every choice."""

import math
import random
from collections import Counter
from collections.abc import Callable
from itertools import combinations

import pytest
import torch

from engine.execution.experts.stats import COUNT_INTERVAL_S, MAX_UNCOUNTED_ROWS, ExpertReporter, ExpertStats
from engine.execution.experts.tables import NUM_TOP_TOKENS
from engine.types import ExpertReport, LayerExperts
from model.checkpoint.config_file import load_config
from tests.support.paths import DEMO

CPU = torch.device("cpu")
MODEL = load_config(DEMO)[0]
L, E = MODEL.num_layers, MODEL.num_experts

Step = tuple[list[int], list[list[list[int]]]]  # token ids [T], choices [L][T][k of the row]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _random_step(rng: random.Random, num_rows: int, max_k: int) -> Step:
    ids = [rng.choice((1, 2, 3, rng.randrange(MODEL.vocab_size))) for _ in range(num_rows)]
    k = [rng.randint(1, max_k) for _ in ids]
    return ids, [[rng.sample(range(E), count) for count in k] for _ in range(L)]


def _rows(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the step's rows, [T] and [L, T, K]."""
    ids, layers = step
    room = max(len(row) for row in layers[0])
    padded = [[row + [-1] * (room - len(row)) for row in layer] for layer in layers]
    return torch.tensor(ids), torch.tensor(padded, dtype=torch.int32)


def _record(counts: ExpertStats, step: Step, *, as_arrays: bool = False) -> None:
    token_ids, expert_ids = _rows(step)
    if as_arrays:
        counts.record(token_ids.numpy(), expert_ids.numpy())
    else:
        counts.record(token_ids, expert_ids)
    token_ids.zero_()  # as the next step may, which has the same tensors
    expert_ids.zero_()


def _naive(steps: list[Step]) -> list[LayerExperts]:
    layers = []
    for index in range(L):
        tokens, pairs = [0] * E, [[0] * E for _ in range(E)]
        of_token: list[Counter[int]] = [Counter() for _ in range(E)]
        for ids, choices in steps:
            for token_id, row in zip(ids, choices[index], strict=True):
                for expert in row:
                    tokens[expert] += 1
                    of_token[expert][token_id] += 1
                for a, b in combinations(row, 2):
                    pairs[a][b] += 1
                    pairs[b][a] += 1
        top = [sorted(c.items(), key=lambda item: (-item[1], item[0]))[:NUM_TOP_TOKENS] for c in of_token]
        layers.append(LayerExperts(tokens, pairs, top))
    return layers


def _tokens(steps: list[Step]) -> list[list[int]]:
    return [layer.tokens for layer in _naive(steps)]


@pytest.mark.parametrize("as_arrays", [False, True], ids=["tensors", "arrays"])
def test_reports_equal_a_loop_over_every_choice(as_arrays: bool) -> None:
    rng, counts = random.Random(0), ExpertStats(MODEL, CPU)
    counts.reset(0.0, 1000.0)
    steps = [_random_step(rng, rng.choice((1, 3, 40)), rng.choice((1, 2, 8))) for _ in range(30)]
    for number, step in enumerate(steps):
        _record(counts, step, as_arrays=as_arrays)
        if number % 7 == 0:
            counts.pop_new_counts(float(number))
    report = counts.report(None, 30.0, 1030.0)
    assert report.since == 1000.0
    assert report.layers == _naive(steps)


def test_rows_that_no_later_step_overwrites_are_not_copied() -> None:
    rng, counts = random.Random(5), ExpertStats(MODEL, CPU)
    steps = [_random_step(rng, 40, 2) for _ in range(2)]
    kept = [tensor.numpy() for tensor in _rows(steps[0])]
    for rows in kept:
        rows[:] = 0
    counts.record(*kept, is_overwritten=False)
    for rows, now in zip(kept, _rows(steps[0]), strict=True):
        rows[:] = now  # seen by the count: these are the same arrays
    _record(counts, steps[1], as_arrays=True)
    assert counts.report(None, 0.0, 0.0).layers == _naive(steps)


def test_a_window_has_exactly_the_steps_computed_in_it() -> None:
    rng, counts = random.Random(1), ExpertStats(MODEL, CPU)
    steps = [_random_step(rng, 5, 2) for _ in range(10)]
    for number, step in enumerate(steps):
        _record(counts, step)
        counts.pop_new_counts(10.0 * number)
    assert counts.report(60.0, 90.0, 5000.0).layers == _naive(steps[3:])
    assert counts.report(15.0, 90.0, 5000.0).layers == _naive(steps[8:])
    assert counts.report(1.0, 95.0, 5000.0).layers == _naive([])
    assert counts.report(15.0, 90.0, 5000.0).since == 4985.0


def test_popped_counts_add_up_and_a_reset_loses_none_of_them() -> None:
    rng, counts = random.Random(2), ExpertStats(MODEL, CPU)
    steps = [_random_step(rng, 7, 3) for _ in range(3)]
    _record(counts, steps[0])
    assert counts.has_unreported
    assert counts.pop_new_counts(0.0) == _tokens(steps[:1])
    assert not counts.has_unreported
    _record(counts, steps[1])
    counts.reset(1.0, 2000.0)
    assert counts.has_unreported
    assert counts.report(None, 1.0, 2000.0).layers == counts.report(60.0, 1.0, 2000.0).layers == _naive([])
    _record(counts, steps[2])
    assert counts.report(None, 2.0, 2001.0).layers == _naive(steps[2:])
    assert counts.pop_new_counts(2.0) == _tokens(steps[1:])


def test_counting_is_due_a_few_times_a_second_or_after_many_rows() -> None:
    rng, counts = random.Random(3), ExpertStats(MODEL, CPU)
    assert not counts.is_due(math.inf)
    counts.pop_new_counts(100.0)
    _record(counts, _random_step(rng, 1, 2))
    assert not counts.is_due(100.0 + COUNT_INTERVAL_S / 2) and counts.is_due(100.0 + COUNT_INTERVAL_S)
    chosen = torch.zeros(L, MAX_UNCOUNTED_ROWS, 1, dtype=torch.int32)
    counts.record(torch.zeros(MAX_UNCOUNTED_ROWS, dtype=torch.int64), chosen)
    assert counts.is_due(100.0)


def test_the_window_keeps_no_more_than_its_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.execution.experts.stats.MAX_WINDOW_BYTES", 3000)
    rng, counts = random.Random(4), ExpertStats(MODEL, CPU)
    steps = [_random_step(rng, 50, 1) for _ in range(10)]  # 50 rows: 200 bytes of tokens and 100 of choices per layer
    for number, step in enumerate(steps):
        _record(counts, step)
        counts.pop_new_counts(float(number))
    assert counts.report(60.0, 9.0, 0.0).layers == _naive(steps[-4:])
    assert counts.report(None, 9.0, 0.0).layers == _naive(steps)


@pytest.mark.parametrize("ask", [ExpertReporter.report, ExpertReporter.reset], ids=["report", "reset"])
def test_a_fault_of_a_report_ends_the_counting_and_not_the_engine(
    ask: Callable[[ExpertReporter], ExpertReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    stats = ExpertStats(MODEL, CPU)
    monkeypatch.setattr(stats, "_count", fail)
    reporter = ExpertReporter(stats)
    assert ask(reporter).layers == []
    assert not reporter.has_unreported
