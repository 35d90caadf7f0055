"""`smoe bench kernels` and `smoe bench engine`: their arithmetic against naive counts, and the commands themselves."""

import json
import sys
from types import SimpleNamespace

import msgspec
import pytest
import torch
from typer.testing import CliRunner

from engine.bench.__main__ import run
from engine.bench.steps import COUNTED_STEPS, Costs, StepBench
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import EngineConfigError
from engine.startup.loading import load_random
from model.bench.roofline import Roofline, RooflineProbe
from model.bench.shapes import PRESETS
from server.bench import offline
from server.cli.main import app
from tests.server.cli.test_main import smoe, started
from tests.support.kernels.tiny_roofline import shrink_measurements
from tests.support.paths import ROOT

TINY = PRESETS["tiny"]
ROOFLINE = Roofline(100.0, {"float32": 10.0, "bfloat16": 20.0})


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_measurements(monkeypatch)


def tiny_engine() -> Engine:
    config = EngineConfig(
        model="", device="cpu", threads=1, num_kv_blocks=200, enable_prefix_caching=False, speculation="off"
    )
    return Engine(config, load_random(config, TINY))


def test_bytes_and_operations_of_a_step_are_those_of_its_matrices() -> None:
    """Every matrix of the tiny network written out, [outputs, inputs]. The last layer's experts see 2 rows."""
    costs = Costs.of(tiny_engine())
    attention = [(64 + 2 * 32, 64), (64, 64)]
    expert = [(96, 64), (96, 64), (64, 96)]
    gate, head = (8, 64), (32000, 64)
    numbers = 2 * (sum(o * i for o, i in attention) + 8 * sum(o * i for o, i in expert)) + 32000 * 64
    gates = 2 * 4 * 8 * 64  # in float32
    read = 2 * numbers + gates
    kv = 2 * 2 * 2 * 16 * 2  # layers, K and V, heads, numbers, bytes
    assert costs.num_bytes(10**6, 7) == pytest.approx(read + 7 * kv)
    assert costs.num_bytes(1, 0) == pytest.approx(read - 2 * 2 * 6 * sum(o * i for o, i in expert) - gates * 0.75)
    expert_bytes = 2 * (2 * sum(o * i for o, i in expert)) + gates / 8
    assert costs.num_bytes(1, 0) - costs.num_bytes(1, 0, 1.5) == pytest.approx(0.5 * expert_bytes)
    per_row, experts = sum(o * i for o, i in [*attention, gate]), 2 * sum(o * i for o, i in expert)
    seen = 4 * 64 * 5  # scores and sums, all heads' numbers, positions
    products = 2 * 3 * per_row + (3 + 2) * experts + 2 * head[0] * head[1]
    assert costs.num_operations(3, 5, 2) == 2 * products + 2 * seen


def test_the_experts_of_decode_steps_are_counted_by_layer() -> None:
    """Two layers of four experts; counts from before the counted steps do not matter."""
    counts = iter([[[9, 9, 9, 9]] * 2, *([[[1, 0, 0, 3], [1, 1, 0, 1]]] * COUNTED_STEPS)])
    bench = StepBench.__new__(StepBench)
    bench._engine = SimpleNamespace(  # type: ignore[assignment]
        experts=SimpleNamespace(pop_new_counts=lambda: next(counts)),
        step=lambda: SimpleNamespace(stats=SimpleNamespace(expert_tokens=None)),
    )
    assert bench._num_chosen() == 2.5


def test_steps_that_take_long_report_their_experts_themselves() -> None:
    """An engine reports counts a few times a second: after a long step none are left to ask for."""
    bench = StepBench.__new__(StepBench)
    reported = SimpleNamespace(stats=SimpleNamespace(expert_tokens=[[1, 0, 0, 3], [1, 1, 0, 1]]))
    bench._engine = SimpleNamespace(  # type: ignore[assignment]
        experts=SimpleNamespace(pop_new_counts=lambda: None), step=lambda: reported
    )
    assert bench._num_chosen() == 2.5


@pytest.mark.usefixtures("fast")
def test_batches_that_fill_a_step_are_left_out_and_if_none_is_left_refused() -> None:
    """Before anything is measured: an error would lose what was."""
    engine = tiny_engine()
    bench = StepBench(engine, RooflineProbe(engine.loaded.runner.model.ops, torch.device("cpu")), "bfloat16")
    budget = engine.loaded.limits.max_num_batched_tokens
    reasons: list[str] = []
    assert bench.fitting([1, budget, budget - 1], reasons.append) == [1, budget - 1]
    assert len(reasons) == 1
    assert reasons[0].startswith(f"a batch of {budget} leaves no room for prompts in steps of {budget} tokens")
    with pytest.raises(EngineConfigError, match=f"{reasons[0]}; --batches takes smaller ones"):
        bench.fitting([budget, budget + 1], reasons.append)


@pytest.mark.usefixtures("fast")
def test_all_counted_steps_have_the_whole_batch() -> None:
    """One row chooses as many experts as a row has, in every layer; a step without it would choose none."""
    engine = tiny_engine()
    bench = StepBench(engine, RooflineProbe(engine.loaded.runner.model.ops, torch.device("cpu")), "bfloat16")
    for context in (4, 40, 400):
        assert bench._decode(1, context)[1] == TINY.experts_per_token


@pytest.mark.usefixtures("fast")
def test_a_decode_step_holds_the_whole_batch_and_leaves_nothing_behind() -> None:
    engine = tiny_engine()
    bench = StepBench(engine, RooflineProbe(engine.loaded.runner.model.ops, torch.device("cpu")), "bfloat16")
    times = list(bench.decode([1, 5], 40))
    assert [(t.kind, t.batch, t.context) for t in times] == [("decode", 1, 40), ("decode", 5, 40)]
    assert all(t.tokens_per_s == pytest.approx(t.batch / t.seconds) and t.share > 0 for t in times)
    [prefill] = bench.prefill([50])
    assert (prefill.kind, prefill.context) == ("prefill", 50)
    assert prefill.tokens_per_s == pytest.approx(50 / prefill.seconds)
    assert not engine.has_work()
    assert engine.stats().num_blocks_held == 0


@pytest.mark.usefixtures("fast")
def test_the_kernels_command_times_each_kernel_at_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, for small measurements; the next test has the process that measures."""
    monkeypatch.setattr(offline, "measure", lambda task: msgspec.to_builtins(run(task)))
    flags = ("--preset", "tiny", "--threads", "1", "--rows", "3", "--contexts", "32,64", "--json")
    result = CliRunner().invoke(app, ["bench", "kernels", *flags])
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["roofline"]["bytes_per_s"] > 0
    names = ["linear", "moe", "rms_norm", "rope"]
    assert [(row["kernel"], row["rows"], row["context"]) for row in answer["kernels"]] == [
        *((name, 3, None) for name in names),
        *(("attention", 3, context) for context in (32, 64)),
    ]
    assert all(row["seconds"] > 0 and row["gigabytes_per_s"] > 0 and row["share"] > 0 for row in answer["kernels"])


def test_the_engine_command_times_each_step_under_the_window_it_is_given() -> None:
    sizes = ("--batches", "2", "--contexts", "64", "--prefills", "20", "--sliding-window", "16")
    command = [
        sys.executable,
        "-m",
        "server",
        "bench",
        "engine",
        "--preset",
        "tiny",
        "--threads",
        "1",
        "--json",
        *sizes,
    ]
    result = started(command, cwd=ROOT)  # measurements of the machine itself: a minute if it is busy
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["roofline"]["bytes_per_s"] > 0
    assert [(s["kind"], s["batch"], s["context"]) for s in answer["steps"]] == [("prefill", 1, 20), ("decode", 2, 64)]
    assert answer["weight_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("kernels", "--rows", "0"), "--rows 0"),
        (("kernels", "--rows", "a"), "--rows a"),
        (("kernels", "--preset", "huge"), "preset"),
        (("engine", "--isa", "mmx"), "isa"),
        (("engine", "/no/where"), "/no/where"),
    ],
)
def test_an_invalid_option_or_checkpoint_is_refused_in_one_line(arguments: tuple[str, ...], named: str) -> None:
    result = smoe("bench", *arguments)
    assert result.returncode == 2
    assert named in result.stderr and "Traceback" not in result.stderr
