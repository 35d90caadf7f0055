"""`python -m tests.gpu.first_light` under the interpreter: its stages run, and report what fails or is missing."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model.bench import roofline
from model.ops.triton.ops import TritonOps
from tests.gpu.first_light import __main__ as program
from tests.gpu.first_light import ops
from tests.gpu.first_light.__main__ import MARK, RUNS, STAGES, StageSpec, main, run_process, run_stage
from tests.gpu.first_light.result import Options, Result, failures, table
from tests.gpu.first_light.shapes import setting_of
from tests.support.kernels.tiny_roofline import shrink_measurements

TINY = Options("cpu", tiny=True)


@pytest.fixture
def _small_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stages measure twice what they would measure for a second: nobody reads these figures."""
    shrink_measurements(monkeypatch)
    monkeypatch.setattr(roofline, "NUM_ROUNDS", 1)


@pytest.mark.usefixtures("_small_measurements")
@pytest.mark.parametrize("stage", ["env", "steps", "sweep", "ranks"])
def test_a_stage_runs_under_the_interpreter(stage: str) -> None:
    result = run_stage(stage, TINY)
    assert (result.outcome, result.detail) == ("ok", "")
    assert result.rows and all("case" in row for row in result.rows)


def test_ranks_need_a_second_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    result = run_stage("ranks", Options("cuda"))
    assert (result.outcome, result.detail) == ("missing", "a second GPU")


def test_a_wrong_op_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = setting_of(TINY)
    assert all(row["ok"] for row in ops._norm(setting))
    monkeypatch.setattr(TritonOps, "rms_norm", lambda self, x, weight, eps: torch.full_like(x, float("nan")))
    assert not any(row["ok"] for row in ops._norm(setting))
    assert failures(list(ops._norm(setting))) == ["rms_norm 1", "rms_norm 3", "rms_norm 20"]


def test_a_stage_reports_failures_errors_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(options: Options) -> None:
        raise ModuleNotFoundError("No module named 'x'", name="x")

    def broken(options: Options) -> None:
        raise RuntimeError("first line\nsecond")

    stages = SimpleNamespace(failing=lambda options: [{"case": "a", "ok": False}], missing=missing, broken=broken)
    monkeypatch.setattr(program.importlib, "import_module", lambda name: stages)  # type: ignore[attr-defined]
    found = {}
    for name in ("failing", "missing", "broken"):
        monkeypatch.setitem(STAGES, name, StageSpec(f"stages:{name}", 1))
        result = run_stage(name, TINY)
        found[name] = result.outcome, result.detail
    assert found == {
        "failing": ("failed", "1: a"),
        "missing": ("missing", "package x"),
        "broken": ("error", "RuntimeError: first line"),
    }


def test_a_process_that_hangs_crashes_or_is_missing_costs_only_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(*_: object, **options: float) -> None:
        raise subprocess.TimeoutExpired("stage", options["timeout"])

    def absent(*_: object, **options: object) -> None:
        raise FileNotFoundError

    good = MARK + json.dumps(Result("sanitizer", "ok").as_fields())
    for run, outcome in (
        (hangs, "timeout"),
        (absent, "missing"),
        (lambda *_, **options: SimpleNamespace(stdout="noise", returncode=-11), "error"),
        (lambda *_, **options: SimpleNamespace(stdout=good, returncode=86), "failed"),
        (lambda *_, **options: SimpleNamespace(stdout=f"{good}\n", returncode=0), "ok"),
    ):
        monkeypatch.setattr(program.subprocess, "run", run)  # type: ignore[attr-defined]
        assert run_process("sanitizer", TINY).outcome == outcome


def test_each_run_fits_ten_minutes_and_all_stages_are_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(sum(STAGES[stage].limit_s for stage in stages) <= 600 for stages in RUNS.values())
    assert {stage for stages in RUNS.values() for stage in stages} == set(STAGES)
    outcomes = {"env": "ok", "sweep": "timeout", "final": "ok"}
    monkeypatch.setattr(program, "run_process", lambda name, options: Result(name, outcomes[name]))
    output = tmp_path / "figures.json"
    assert main(["run3", "--output", str(output)]) == 1
    assert [result["outcome"] for result in json.loads(output.read_text())] == ["ok", "timeout", "ok"]


def test_the_table_shows_stages_then_their_rows() -> None:
    text = table([Result("env", "ok", 1.25), Result("ops", "failed", 2.0, "1: x", [{"case": "x", "error": 0.123456}])])
    assert text.splitlines()[1:3] == ["env          ok            1.2  ", "ops          failed        2.0  1: x"]
    assert text.splitlines()[-1] == "  case x  error 0.1235"


def test_its_stages_of_kernels_need_only_torch_triton_numpy_and_safetensors() -> None:
    """They are imported while every other package is absent. Parity needs transformers, ranks need the whole engine."""
    absent = "msgspec llguidance transformers tokenizers fastapi pydantic uvicorn jinja2 httpx psutil hypothesis pytest"
    modules = {spec.function.partition(":")[0] for name, spec in STAGES.items() if name not in ("parity", "ranks")}
    program = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({absent.split()!r}))  # importing one of them raises ModuleNotFoundError
for name in {sorted(modules)!r}:
    importlib.import_module(name)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
