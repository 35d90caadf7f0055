"""`smoe plan` and `smoe doctor` recommend only what fits: random shapes, memory sizes and settings."""

import random
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from engine.capacity.memory_plan import MemoryPlan, plan_memory
from engine.config import EngineConfig
from server.cli import doctor
from server.cli.plan.memory import PlanReport, make_report
from server.settings.engine_config import engine_config
from server.settings.settings import Settings
from server.settings.sources import load_settings
from tests.support.checkpoints.header_only import save_headers

pytestmark = pytest.mark.usefixtures("clean_environment")
GIB, MIB = 1 << 30, 1 << 20
NUM_SHAPES, NUM_PLANS = 6, 10
BITS = {"float32": 32, "bfloat16": 16, "lossless": 12, "int8": 8, "int4": 4}
UNITS = {"GiB": GIB, "MiB": MIB}


def random_shape(rng: random.Random) -> dict[str, Any]:
    head_dim, num_kv = rng.choice([32, 64, 128]), rng.choice([1, 2, 8])
    num_heads = num_kv * rng.choice([1, 4])
    return {
        "vocab_size": rng.choice([320, 32000]),
        "hidden_size": num_heads * head_dim,
        "intermediate_size": 32 * rng.randint(1, 300),
        "num_hidden_layers": rng.randint(1, 2),
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv,
        "num_local_experts": rng.choice([2, 8]),
        "max_position_embeddings": rng.choice([64, 2048, 32768]),
        "sliding_window": rng.choice([None, 128]),
    }


def random_settings(rng: random.Random) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, values in {
        "dtype": ["float32", "bfloat16"],
        "quantization": ["int8", "int4"],
        "kv_cache_dtype": ["int8"],
        "device": ["cpu", "cuda"],
        "max_model_len": [2, 50, 5000],
        "block_size": [1, 64],
    }.items():
        if rng.random() < 0.25:
            given[name] = rng.choice(values)
    size = rng.choice(
        [{}, {}, {"num_kv_blocks": rng.choice([1, 10, 10_000])}, {"kv_cache_memory_bytes": rng.choice([1, 40]) * MIB}]
    )
    return given | size


def assert_fits(plan: MemoryPlan) -> None:
    """By the engine's arithmetic, and by a sum that needs no scales: a lower bound of the weights, and the pool."""
    assert plan.limits is not None, plan.unfit_reason
    least = plan.total_parameters * BITS[plan.weight_kind] // 8
    pool = (plan.limits.num_blocks + 1) * plan.config.block_size * plan.kv_bytes_per_token
    assert least + pool <= plan.weight_bytes + plan.kv_cache_bytes <= plan.memory_bytes


def assert_named_sizes_suffice(report: PlanReport) -> None:
    """The memory that the verdict names is enough for this configuration, or for the smaller weights it names."""
    for amount, unit, kind in re.findall(r"(\d+) (GiB|MiB)(?: of memory| in (int8|int4|bfloat16))", needs(report)):
        changes = {} if not kind else {"dtype": kind} if kind in ("bfloat16", "float32") else {"quantization": kind}
        plan = plan_memory(replace(report.plan.config, **changes), int(amount) * UNITS[unit])
        assert_fits(plan)


def assert_named_flags_fit(report: PlanReport) -> None:
    too_large = re.findall(r"; lower --([a-z-]+)", report.verdict)  # of the sizes that are set
    assert all(getattr(report.plan.config, flag.replace("-", "_")) is not None for flag in too_large), report.verdict
    named = re.findall(r"(?<!lower )--[a-z-]+", report.verdict)
    if not report.verdict.endswith(" fits"):
        assert not named or (named == ["--max-model-len"] and not report.fitting), report.verdict
        return
    [length] = re.findall(r"; --max-model-len (\d+) fits", report.verdict)
    assert_fits(plan_memory(replace(report.plan.config, max_model_len=int(length)), report.plan.memory_bytes))


def served_with(command: list[str], variables: dict[str, Any]) -> EngineConfig:
    """Return the engine's configuration under a printed command, which overrides the variables."""
    flags = dict(zip((flag.strip("-").replace("-", "_") for flag in command[3::2]), command[4::2], strict=True))
    return engine_config(load_settings(variables | flags), Path(command[2]))


def needs(report: PlanReport) -> str:
    """The part of the verdict that names sizes that would do."""
    return report.verdict.partition("needs ")[2]


@pytest.mark.parametrize("seed", range(NUM_SHAPES))
def test_every_recommendation_fits(seed: int, scale: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    path = save_headers(tmp_path, random_shape(rng), rng.choice(["BF16", "F32"]))
    for _ in range(NUM_PLANS * scale):
        given = random_settings(rng)  # those that the command does not name stay in variables
        settings = load_settings({"model": str(path), **given})
        whole = make_report(settings, 1 << 50).plan
        memory_bytes = int(whole.weight_bytes * rng.choice([0.2, 0.4, 0.6, 1.0, 1.01, 1.5, 4])) + rng.randint(
            0, 8 * MIB
        )
        report = make_report(settings, memory_bytes)
        assert bool(report.command) == bool(report.fitting)
        if report.command:
            assert_fits(plan_memory(served_with(report.command, given), memory_bytes))
        assert_named_sizes_suffice(report)
        assert_named_flags_fit(report)
        assert_doctor_agrees(settings, report, memory_bytes)


def assert_doctor_agrees(settings: Settings, report: PlanReport, memory_bytes: int) -> None:
    """The check passes only if these settings fit; its remedy is the plan's command."""
    check = next(doctor.check_model(settings, memory_bytes))
    assert (check.verdict == "ok") == bool(report.plan.limits)
    is_smaller = report.fitting is not None and report.fitting is not report.plan
    assert check.remedy == (shlex.join(report.command if is_smaller else report.pack_command) or None)
    if report.pack_command:
        assert report.fitting is None and report.plan.config.device != "cuda"
