"""engine/planning/predicted_steps.py: counts by hand for Mixtral-8x7B, and what holds for any hardware."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.capacity.memory_plan import MemoryPlan, plan_memory
from engine.config import EngineConfig
from engine.planning.hardware import HARDWARE, Hardware
from engine.planning.predicted_steps import GATHER_S, SHARE_OF_BANDWIDTH, SHARE_OF_PEAK, STEP_S, StepPredictor
from engine.planning.step_time_model import MeasuredStep
from tests.support.checkpoints.header_only import MIXTRAL_8X7B, save_headers

GIB = 1 << 30
NETWORK = 25e9 / 8
EXPERT_NUMBERS = 32 * 3 * 4096 * 14336  # of one expert of each layer
DENSE_NUMBERS = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024) + 32000 * 4096  # attention and head
FAST = Hardware(1e15, 1e30)  # reading takes all of the time


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_headers(tmp_path_factory.mktemp("predicted"), MIXTRAL_8X7B)


@pytest.fixture(scope="module")
def plans(mixtral: Path) -> dict[int, MemoryPlan]:
    """Plans for 1, 2 and 4 hosts with a rank each."""
    return {n: planned(mixtral, n, n) for n in (1, 2, 4)}


def planned(model: Path, num_ranks: int, num_hosts: int, quantization: str = "none") -> MemoryPlan:
    config = EngineConfig(
        model=str(model), tensor_parallel_size=num_ranks, nnodes=num_hosts, quantization=quantization, device="cpu"  # type: ignore[arg-type]
    )  # fmt: skip
    return plan_memory(config, 160 * GIB)


def seconds(plan: MemoryPlan, hardware: Hardware, network: float = NETWORK) -> dict[tuple[str, int, int], float]:
    steps = StepPredictor(plan, hardware, network).steps()
    return {(step.kind, step.batch, step.context): step.seconds for step in steps}


@pytest.mark.parametrize(("rows", "experts"), [(1, 2.0), (2, 3.5), (4, 8 * (1 - 0.75**4))])
def test_a_decode_step_reads_the_experts_that_its_rows_take_and_their_positions(
    plans: dict[int, MemoryPlan], rows: int, experts: float
) -> None:
    hardware = Hardware(100e9, 1e30)
    read_bytes = 2 * (DENSE_NUMBERS + experts * EXPERT_NUMBERS) + rows * 256 * 131_072
    expected_s = STEP_S + read_bytes / (SHARE_OF_BANDWIDTH * 100e9)
    assert seconds(plans[1], hardware)["decode", rows, 256] == pytest.approx(expected_s, rel=1e-3)  # gates and norms


def test_a_long_prompt_takes_two_operations_for_each_active_weight_and_row(plans: dict[int, MemoryPlan]) -> None:
    hardware = Hardware(1e30, 10e12)
    dense = 2048 * 2 * (DENSE_NUMBERS - 32000 * 4096 + 2 * EXPERT_NUMBERS) + 2 * 32000 * 4096
    attention = 4 * 32 * 4096 * 2048 * 2049 / 2
    expected_s = STEP_S + (dense + attention) / (SHARE_OF_PEAK * 10e12)
    assert seconds(plans[1], hardware)["prefill", 1, 2048] == pytest.approx(expected_s, rel=1e-3)


def test_two_hosts_halve_the_work_and_exchange_rows(plans: dict[int, MemoryPlan]) -> None:
    """A row of all layers is 2,621,440 bytes, of which a host receives half, as of 4 * 32,000 bytes of logits."""
    cpus = HARDWARE["epyc-9654"]
    one, two = seconds(plans[1], cpus)["decode", 16, 256], seconds(plans[2], cpus)["decode", 16, 256]
    received_s = 16 * (2_621_440 + 128_000) / 2 / NETWORK
    assert two - STEP_S == pytest.approx((one - STEP_S) / 2 + 129 * GATHER_S + received_s, rel=1e-3)


@pytest.mark.parametrize(("quantization", "bytes_per_row"), [("int8", 32 * (12_288 * 2 + 28_672 * 4))])
def test_hidden_rows_that_will_be_quantized_are_exchanged_in_float32(
    mixtral: Path, quantization: str, bytes_per_row: int
) -> None:
    slow_network = seconds(planned(mixtral, 2, 2, quantization), FAST, 1e6)["decode", 1, 256]
    assert slow_network == pytest.approx((bytes_per_row + 128_000) / 2 / 1e6, rel=0.05)


def test_each_rank_of_a_host_receives_its_own_copy(mixtral: Path) -> None:
    one, two = (seconds(planned(mixtral, ranks, 2), FAST, 1e6)["decode", 1, 256] for ranks in (2, 4))
    assert two == pytest.approx(2 * one, rel=0.05)


@settings(derandomize=True, max_examples=60)
@given(
    bandwidth=st.floats(1e10, 1e13),
    peak=st.floats(1e12, 1e15),
    factor=st.floats(1.0, 100.0),
    hosts=st.sampled_from([1, 2, 4]),
)
def test_better_hardware_is_never_slower_and_more_work_never_faster(
    plans: dict[int, MemoryPlan], bandwidth: float, peak: float, factor: float, hosts: int
) -> None:
    hardware = Hardware(bandwidth, peak)
    found = seconds(plans[hosts], hardware)
    for better in (replace(hardware, memory_bytes_per_s=bandwidth * factor),
                   replace(hardware, operations_per_s=peak * factor)):  # fmt: skip
        assert all(seconds(plans[hosts], better)[step] <= found[step] for step in found)
    assert all(value <= found[step] for step, value in seconds(plans[hosts], hardware, NETWORK * factor).items())
    assert all(found[step] <= found[other] for step in found for other in found if is_smaller(step, other))


def is_smaller(step: tuple[str, int, int], other: tuple[str, int, int]) -> bool:
    return step[0] == other[0] and step[1] <= other[1] and step[2] <= other[2]


@settings(derandomize=True, max_examples=30)
@given(bandwidth=st.floats(1e10, 1e13), peak=st.floats(1e12, 1e15), hosts=st.sampled_from([2, 4]))
def test_hosts_never_save_more_than_their_number(
    plans: dict[int, MemoryPlan], bandwidth: float, peak: float, hosts: int
) -> None:
    hardware = Hardware(bandwidth, peak)
    one, several = seconds(plans[1], hardware), seconds(plans[hosts], hardware, 1e30)
    assert all(several[step] >= one[step] / hosts for step in one)


def test_predicted_steps_are_measurements_to_the_model_of_a_steps_time(plans: dict[int, MemoryPlan]) -> None:
    steps = StepPredictor(plans[1], HARDWARE["epyc-9654"], NETWORK).steps()
    assert {type(step) for step in steps} == {MeasuredStep}
    assert len(steps) == len({(step.kind, step.batch, step.context) for step in steps})
