"""Drafts change no bit: tokens, logprobs, experts and ends equal those of the request alone without drafts.

The same for every dtype and quantization, with more requests: python -m tests.measure.speculation.bits
"""

import random
from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.speculation.drafted_runs import Census, compare, random_loads, random_work, serve_alone

MAX_RUNS = 12  # where a CPU rounds otherwise, the first ones may meet no preemption


@pytest.mark.parametrize(
    ("shape", "numerics"),
    [
        (Shape(dim=96, hidden_dim=112, seed=1), {"dtype": "bfloat16"}),
        (
            Shape(dim=96, hidden_dim=112, window=48, num_kv_heads=1, seed=2),
            {"dtype": "float32", "quantization": "int8"},
        ),
    ],
    ids=["bf16", "int8, window"],
)
def test_a_request_gets_the_same_bits_with_right_wrong_and_random_drafts(
    shape: Shape, numerics: dict[str, str], tmp_path: Path, scale: int
) -> None:
    torch.set_num_threads(1)
    save_random_checkpoint(shape, tmp_path)
    rng = random.Random(f"drafts {shape.seed}")
    work = random_work(rng, 20 * scale)
    alone = serve_alone(tmp_path, work, backend="native", **numerics)
    runs: list[Census] = []
    for load in islice(random_loads(rng), MAX_RUNS):
        runs.append(compare(tmp_path, work, alone, load | {"backend": "native"} | numerics, rng))
        if len(runs) >= 2 + scale and _met_every_case(runs, shape):
            break
    assert sum(run.requests for run in runs) > len(runs) * len(work) * 0.8
    assert _met_every_case(runs, shape), runs


def _met_every_case(runs: list[Census], shape: Shape) -> bool:
    accepted, drafted = sum(run.accepted for run in runs), sum(run.drafted for run in runs)
    has_waited = any(run.window_slides if shape.window else run.preemptions for run in runs)
    return accepted > 100 < drafted - accepted and any(run.stops for run in runs) and has_waited


def test_a_request_with_a_grammar_gets_the_same_bits_with_drafts(tmp_path: Path, scale: int) -> None:
    torch.set_num_threads(1)
    shape = Shape(dim=96, hidden_dim=112, seed=3)
    save_random_checkpoint(shape, tmp_path)
    rng = random.Random("drafts under grammars")
    work = random_work(rng, 16 * scale, grammar_share=0.8)
    alone = serve_alone(tmp_path, work, backend="native", dtype="bfloat16")
    loads = random_loads(rng)
    runs = [
        compare(tmp_path, work, alone, next(loads) | {"backend": "native", "dtype": "bfloat16"}, rng) for _ in range(3)
    ]
    assert sum(run.requests for run in runs) > len(runs) * len(work) * 0.8
    assert sum(run.accepted_under_grammars for run in runs) > 50 < sum(run.rejected_under_grammars for run in runs)
