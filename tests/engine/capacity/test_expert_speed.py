"""The formula of decision 74 against its definition."""

import pytest

from engine.capacity.expert_memory import ExpertMemory
from engine.capacity.expert_speed import Rates, budget_beside_reads, tokens_per_s
from model.checkpoint.config_file import load_config
from tests.support.paths import DEMO

MODEL, _ = load_config(DEMO)  # 2 of 8 experts
GB = 1e9


def memory(num_slots: int) -> ExpertMemory:
    """Return the sizes of Mixtral-8x7B: 32 layers of 8 experts of 0.1 GB."""
    return ExpertMemory(num_slots, slot_bytes=100_000_000, num_experts=256, dense_bytes=1_600_000_000)


def test_one_client_waits_for_two_experts_of_each_layer_as_far_as_they_are_missing() -> None:
    slow_disk = Rates(memory=100 * GB, disk=2 * GB)
    assert tokens_per_s(memory(192), MODEL, 1, slow_disk) == pytest.approx(1 / (2 * 32 * 0.25 * 0.1 / 2))
    fast_disk = Rates(memory=100 * GB, disk=1000 * GB)
    assert tokens_per_s(memory(192), MODEL, 1, fast_disk) == pytest.approx(1 / ((1.6 + 64 * 0.1) / 100))


def test_many_clients_share_the_experts_that_are_read() -> None:
    rates = Rates(memory=100 * GB, disk=2 * GB)
    one, many = (tokens_per_s(memory(128), MODEL, count, rates) for count in (1, 1000))
    assert many == pytest.approx(1000 / (128 * 0.1 / 2))  # all experts, half of which are missing
    assert many / one == pytest.approx(1000 / 4)
    assert tokens_per_s(memory(256), MODEL, 16, rates) > 50 * one, "nothing is missing"


def test_a_step_of_a_prompt_takes_as_many_tokens_as_are_computed_while_the_missing_experts_are_read() -> None:
    assert budget_beside_reads(64, memory(196), 2 * GB) == 64 * 6  # 60 of 0.1 GB: 3 s, 6 times half a second
    assert budget_beside_reads(64, memory(255), 2 * GB) == 64, "fewer than are computed in half a second anyway"
    assert budget_beside_reads(640, memory(2), 1 * GB) == 2048, "the largest"
    assert budget_beside_reads(64, memory(256), 2 * GB) == 64
