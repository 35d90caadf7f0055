"""`smoe bench kernels` and `smoe bench engine`: their arithmetic against naive counts, and the commands themselves."""

import itertools
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from engine.bench.steps import Costs, StepBench
from engine.config import EngineConfig
from engine.engine import Engine
from engine.startup.loading import load_random
from model.bench import roofline
from model.bench.kernels import distinct_experts
from model.bench.roofline import ARITHMETICS, Roofline, RooflineProbe, measure
from model.bench.shapes import PRESETS
from model.ops.native.library import ISAS, NativeLibrary
from model.ops.native.ops import NativeOps
from model.ops.reference.ops import ReferenceOps
from tests.support.paths import ROOT

TINY = PRESETS["tiny"]
ROOFLINE = Roofline(100.0, {"float32": 10.0, "bfloat16": 20.0})


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures that say nothing, at once."""
    monkeypatch.setattr(roofline, "BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr(roofline, "MIN_ROUND_S", 0.001)
    monkeypatch.setattr(roofline, "PEAK_ROUNDS", 64)
    monkeypatch.setitem(roofline.MATMUL_SIZE, "cpu", 64)


def native_ops() -> list[NativeOps]:
    library = NativeLibrary()
    return [NativeOps(library, 2, isa) for isa in library.isas()]


@pytest.mark.parametrize("num_bytes", [0, 1, 63, 64, 511, 4096, (1 << 20) + 77, (3 << 20) - 4])
def test_reading_everything_sums_every_word(num_bytes: int) -> None:
    """Whole strides as 32-bit words, what is behind them byte by byte; only the last task has such a rest."""
    buffer = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8)
    for ops in native_ops():
        stride = 8 * {"portable": 16, "avx2": 32}.get(ops.isa, 64)
        whole = num_bytes // stride * stride
        array = buffer.numpy()
        expected = int(array[:whole].view(np.uint32).sum(dtype=np.uint64)) + int(array[whole:].sum(dtype=np.uint64))
        assert ops.read_all(buffer) == expected % 2**32


def test_peaks_count_the_operations_of_all_threads() -> None:
    """16 tasks per thread; in each 12 chains, two operations per number in a register, or products of whole tiles."""
    vectors = {"portable": 4, "avx2": 8, "avx512": 16, "avx512bf16": 16, "amx": 16}  # numbers in a register
    for ops in native_ops():
        in_float32, in_tiles = 32 * 12 * vectors[ops.isa] * 2, 32 * 4 * 16 * 16 * 32 * 2
        in_bfloat16 = {"amx": in_tiles, "avx512bf16": 2 * in_float32}.get(ops.isa, in_float32)
        in_int8 = {"amx": 2 * in_tiles, "avx512bf16": 4 * in_float32}.get(ops.isa, 0)
        assert [ops.peak_operations(kind, 16) for kind in range(3)] == [in_float32, in_bfloat16, in_int8]
        assert ops.peak_operations(0, 160) == 10 * in_float32
    assert set(vectors) == set(ISAS)


@pytest.mark.usefixtures("fast")
def test_every_limit_is_positive() -> None:
    for ops in (*native_ops(), ReferenceOps()):
        limits = measure(ops, torch.device("cpu"))
        assert limits.bytes_per_s > 0
        assert {"float32", "bfloat16"} <= set(limits.operations_per_s) <= set(ARITHMETICS)
        assert all(peak > 0 for peak in limits.operations_per_s.values())


def test_the_limit_is_the_slower_of_memory_and_arithmetic() -> None:
    assert ROOFLINE.limit_s(200, 10, "float32") == 2.0
    assert ROOFLINE.limit_s(100, 40, "float32") == 4.0
    assert ROOFLINE.limit_s(100, 40, "bfloat16") == 2.0


@pytest.mark.parametrize(("num_experts", "k", "num_rows"), [(4, 1, 3), (4, 2, 3), (5, 3, 2), (3, 3, 2)])
def test_distinct_experts_are_the_mean_over_all_draws(num_experts: int, k: int, num_rows: int) -> None:
    draws = itertools.product(itertools.combinations(range(num_experts), k), repeat=num_rows)
    counts = [len(set().union(*draw)) for draw in draws]
    assert distinct_experts(num_experts, k, num_rows) == pytest.approx(sum(counts) / len(counts))


def tiny_engine() -> Engine:
    config = EngineConfig(model="", device="cpu", threads=1, num_kv_blocks=200, enable_prefix_caching=False)
    return Engine(config, load_random(config, TINY))


def test_what_a_step_reads_and_computes_is_what_its_matrices_say() -> None:
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
    per_row, experts = sum(o * i for o, i in [*attention, gate]), 2 * sum(o * i for o, i in expert)
    seen = 4 * 64 * 5  # scores and sums, all heads' numbers, positions
    products = 2 * 3 * per_row + (3 + 2) * experts + 2 * head[0] * head[1]
    assert costs.num_operations(3, 5, 2) == 2 * products + 2 * seen


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


def smoe(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def answer_of(*arguments: str) -> dict[str, Any]:
    result = smoe(*arguments, "--preset", "tiny", "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["roofline"]["bytes_per_s"] > 0
    assert isinstance(answer, dict)
    return answer


def test_the_kernels_command_times_each_kernel_at_each_size() -> None:
    answer = answer_of("kernels", "--rows", "3", "--contexts", "32,64")
    names = ["linear", "moe", "rms_norm", "rope"]
    assert [(row["kernel"], row["rows"], row["context"]) for row in answer["kernels"]] == [
        *((name, 3, None) for name in names),
        *(("attention", 3, context) for context in (32, 64)),
    ]
    assert all(row["seconds"] > 0 and row["gigabytes_per_s"] > 0 and row["share"] > 0 for row in answer["kernels"])


def test_the_engine_command_times_each_step_under_the_window_it_is_given() -> None:
    answer = answer_of("engine", "--batches", "2", "--contexts", "64", "--prefills", "20", "--sliding-window", "16")
    assert [(s["kind"], s["batch"], s["context"]) for s in answer["steps"]] == [("prefill", 1, 20), ("decode", 2, 64)]
    assert answer["weight_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("kernels", "--rows", "0"), "--rows 0"),
        (("kernels", "--rows", "a"), "--rows a"),
        (("kernels", "--preset", "huge"), "preset"),
        (("engine", "--isa", "mmx"), "isa"),
        (("engine", "/no/where"), "/no/where"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: tuple[str, ...], said: str) -> None:
    result = smoe(*arguments)
    assert result.returncode == 2
    assert said in result.stderr and "Traceback" not in result.stderr
