"""Cases of the kernel benchmark: expected numbers of experts, and bytes and operations of each kernel."""

import itertools

import pytest
import torch

from model.bench import kernels
from model.bench.kernels import Case, Setting, distinct_experts, measure_kernels
from model.bench.roofline import Roofline, RooflineProbe
from model.bench.shapes import PRESETS
from model.ops.interface import RoutingRequest
from model.ops.reference.ops import ReferenceOps

CPU = torch.device("cpu")


@pytest.mark.parametrize(("num_experts", "k", "num_rows"), [(4, 1, 3), (4, 2, 3), (5, 3, 2), (3, 3, 2)])
def test_distinct_experts_are_the_mean_over_all_draws(num_experts: int, k: int, num_rows: int) -> None:
    draws = itertools.product(itertools.combinations(range(num_experts), k), repeat=num_rows)
    counts = [len(set().union(*draw)) for draw in draws]
    assert distinct_experts(num_experts, k, num_rows) == pytest.approx(sum(counts) / len(counts))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Run every call once instead of timing it, report 1 s, and collect the cases."""
    cases: list[Case] = []
    time_case = kernels._time

    def collect(setting: Setting, case: Case) -> kernels.KernelTime:
        cases.append(case)
        return time_case(setting, case)

    def run_once(calls: kernels.Calls, device: torch.device) -> float:
        for call in calls:
            call()
        return 1.0

    monkeypatch.setattr(kernels, "COLD_BYTES", 1)
    monkeypatch.setattr(kernels, "_time", collect)
    monkeypatch.setattr(kernels, "seconds_of", run_once)
    monkeypatch.setattr(RooflineProbe, "__init__", lambda self: None)
    monkeypatch.setattr(RooflineProbe, "now", lambda self: Roofline(1e6, {"float32": 1e9}))
    return cases


def test_the_experts_that_the_rows_chose_are_counted() -> None:
    choices = iter([[[0, 1], [1, 2]], [[3, 3], [3, 3]]])
    request = RoutingRequest(torch.tensor([2, 2]), None, torch.zeros(2, 2, dtype=torch.int32))
    calls = [lambda: request.expert_ids.copy_(torch.tensor(next(choices)))] * 2
    assert kernels._num_chosen(calls, request) == 2.0  # 3 and 1


def test_bytes_and_operations_of_each_kernel_are_those_of_its_shapes(
    timed: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """tiny: D = 64, H = 4, G = 2, K = 16, F = 96, 8 experts of which a row takes 2."""
    setting = Setting(ReferenceOps(), PRESETS["tiny"], torch.float32, "float32", "float32", CPU, RooflineProbe())  # type: ignore[call-arg]
    monkeypatch.setattr(kernels, "_num_chosen", lambda calls, request: 5.0)
    times = list(measure_kernels(setting, [3], [20]))
    qkv, expert = 128 * 64, 3 * 64 * 96
    gate = 8 * 64
    experts = 5
    expected = {
        "linear": (4 * (qkv + 3 * (64 + 128)), 2 * 3 * qkv),
        "moe": (4 * ((8 * expert + gate) * experts / 8 + 2 * 3 * 64), 2 * 3 * 2 * expert),
        "rms_norm": (4 * 2 * 3 * 64, 4 * 3 * 64),
        "rope": (4 * 3 * 16 * (4 + 2 + 2 + 4 + 2 + 2), 3 * 3 * 16 * (4 + 2)),
        "attention": (4 * 2 * 3 * 20 * 2 * 16, 4 * 3 * 20 * 4 * 16),
    }
    assert {case.kernel for case in timed} == set(expected)
    for case in timed:
        assert (case.num_bytes, case.num_operations) == pytest.approx(expected[case.kernel]), case.kernel
    for time in times:
        num_bytes, num_operations = expected[time.kernel]
        assert time.share == pytest.approx(max(num_bytes / 1e6, num_operations / 1e9))
