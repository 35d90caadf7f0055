"""`smoe plan` and `smoe doctor` of a pack whose experts are read when they are needed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from engine.capacity.machine.disk_speed import DiskSample
from engine.capacity.memory_plan import plan_memory
from engine.errors import EngineConfigError
from server.cli import doctor
from server.cli.doctor import check_model
from server.cli.main import app
from server.cli.plan import memory
from server.settings.engine_config import engine_config
from server.settings.sources import load_settings
from tests.support.checkpoints.packs import make_pack
from tests.support.paths import DEMO

GIB = 1 << 30


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pack(DEMO, tmp_path_factory.mktemp("packs") / "p", quantization="int8")


def plan(pack: Path, *flags: str) -> Result:
    return CliRunner().invoke(app, ["plan", str(pack), *flags])


def as_json(pack: Path, *flags: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(plan(pack, "--json", *flags).stdout)
    return found


def test_a_plan_with_room_for_some_experts_counts_them_and_gives_their_command(packed: Path) -> None:
    whole = as_json(packed, "--memory", "1GiB", "--expert-memory", "auto")["expert_memory"]
    assert whole["num_slots"] == whole["num_experts"] == 40
    size = 10 * whole["slot_bytes"]
    found = as_json(packed, "--memory", "1GiB", "--expert-memory", str(size + 5))
    assert found["expert_memory"]["num_slots"] == 10
    assert found["host_weight_bytes"] == size + whole["dense_bytes"]
    speeds = found["expert_memory"]["tokens_per_s"]
    assert speeds["1"] < speeds["8"] < speeds["16"] < whole["tokens_per_s"]["16"]
    assert found["command"][:6] == ["smoe", "serve", str(packed), "--dtype", "bfloat16", "--quantization"]
    assert found["command"][7:9] == ["--expert-memory", str(size)]
    settings = load_settings({"model": str(packed), "expert_memory": str(size)})
    own = plan_memory(engine_config(settings, packed), GIB)
    assert own.limits is not None and found["num_kv_blocks"] == own.limits.num_blocks
    assert own.held_weight_bytes == size, "other weights are mapped"


def test_the_table_names_the_rates_that_the_speed_follows_from(packed: Path) -> None:
    lines = plan(packed, "--memory", "1GiB", "--expert-memory", "2MiB").stdout
    assert re.search(r"^9 of 40 experts fit \S+ MiB; the others are read from the disk$", lines, re.MULTILINE)
    assert re.search(
        r"at 100 GB/s of memory and 2\.5 GB/s of disk, which was not measured, by clients: "
        r"\d+\.\d for 1, \d+\.\d for 8, \d+\.\d for 16",
        lines,
    )


def test_a_plan_for_this_machine_measures_the_disk(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "disk_sample", lambda pack: DiskSample(3 << 20, 0.5))
    measured = as_json(packed, "--expert-memory", "2MiB")["expert_memory"]
    assert (measured["disk_bytes_per_s"], measured["disk_sample_bytes"]) == (6 << 20, 3 << 20)
    other = as_json(packed, "--expert-memory", "2MiB", "--memory", "1GiB")["expert_memory"]
    assert (other["disk_bytes_per_s"], other["disk_sample_bytes"]) == (2.5e9, 0)
    assert measured["tokens_per_s"]["1"] < other["tokens_per_s"]["1"]
    lines = plan(packed, "--expert-memory", "2MiB").stdout
    read = "and of this disk, 0.01 GB/s (3.0 MiB of the pack read in 0.50 s), by clients: "
    assert f"{read}{measured['tokens_per_s']['1']:.1f} for 1, " in lines


def test_a_plan_without_missing_experts_reads_nothing(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "disk_sample", lambda pack: pytest.fail("read the disk"))
    found = as_json(packed, "--expert-memory", "auto")["expert_memory"]
    assert found["num_slots"] == found["num_experts"] and found["disk_bytes_per_s"] is None
    assert f"all {found['num_experts']} experts fit" in plan(packed, "--expert-memory", "auto").stdout


def test_a_disk_that_cannot_be_read_is_one_line(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(pack: Path) -> DiskSample:
        raise EngineConfigError(f"{pack} cannot be read: Input/output error")

    monkeypatch.setattr(memory, "disk_sample", broken)
    refused = plan(packed, "--expert-memory", "2MiB")
    assert refused.exit_code == 2 and "cannot be read: Input/output error" in refused.stderr


def test_what_cannot_be_served_exits_with_the_reason(packed: Path) -> None:
    little = plan(packed, "--memory", "1GiB", "--expert-memory", "1KiB")
    assert little.exit_code == 1 and "--expert-memory 1.0 KiB is too small: 2 experts of this pack" in little.stdout
    refused = plan(DEMO, "--expert-memory", "auto")
    assert refused.exit_code == 2 and "--expert-memory needs a pack" in refused.stderr


def test_doctor_measures_the_disk(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "disk_sample", lambda pack: DiskSample(3 << 29, (3 << 29) / 1.5e9))
    settings = load_settings({"model": str(packed), "expert_memory": "2MiB"})
    [check] = [check for check in check_model(settings, GIB) if check.name == "experts"]
    read = "9 of 40 fit memory; the disk reads 1.50 GB/s (1.5 GiB of the pack read in 1.07 s): tokens/s"
    assert check.verdict == "ok" and check.detail.startswith(read)
