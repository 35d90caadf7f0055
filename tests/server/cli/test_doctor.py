"""`smoe doctor` finds what would keep the server from starting, and names it."""

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest

from server.cli import doctor
from server.cli.doctor import Check, run_checks
from server.settings import load_settings
from tests.server.cli.test_main import smoe
from tests.support.paths import DEMO

FOUND = {"torch_version": "2.11", "gpus": [], "num_cores": 2, "isas": ["portable", "avx2"], "native_error": None}


def probing(monkeypatch: pytest.MonkeyPatch, **changed: object) -> None:
    """The engine's side finds what it is told to find."""
    code = f"print({json.dumps(FOUND | changed)!r})"
    monkeypatch.setattr(doctor, "PROBE", (sys.executable, "-c", code))


def found(name: str, **flags: object) -> Check:
    [finding] = [finding for finding in run_checks(load_settings({"port": 0, **flags})) if finding.name == name]
    return finding


def test_the_demo_on_this_machine_would_start() -> None:
    result = smoe("doctor", "--json", SMOE_PORT="0")
    report = json.loads(result.stdout)
    assert (result.returncode, report["ok"]) == (0, True), result.stdout
    verdicts = {finding["name"]: finding["verdict"] for finding in report["findings"]}
    assert verdicts.keys() == {"python", "torch", "cpu", "memory", "model", "tokenizer", "port", "open files"}
    assert verdicts["model"] == verdicts["tokenizer"] == "ok"


def test_a_damaged_checkpoint_fails_by_the_name_of_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    probing(monkeypatch)
    damaged = shutil.copytree(DEMO, tmp_path / "damaged", ignore=shutil.ignore_patterns("training"))
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    finding = found("model", model=str(damaged))
    assert finding.verdict == "fail" and "model.safetensors" in finding.detail
    shutil.copy(DEMO / "model.safetensors", weights)
    (damaged / "tokenizer.model").unlink()
    assert found("model", model=str(damaged)).verdict == "ok"
    assert found("tokenizer", model=str(damaged)).verdict == "fail"


def test_a_taken_port_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    probing(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        finding = found("port", port=port)
    assert finding.verdict == "fail" and str(port) in finding.detail
    assert found("port", port=port).verdict == "ok"


def test_no_native_library_is_a_warning_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    probing(monkeypatch, native_error="the CPU library was not built", isas=[])
    finding = found("cpu")
    assert finding.verdict == "warn" and finding.remedy and "not built" in finding.detail


def test_a_gpu_that_is_asked_for_and_not_there_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    probing(monkeypatch)
    assert found("torch", device="cuda").verdict == "fail"
    assert found("torch").verdict == "ok"
    probing(monkeypatch, gpus=["H100"])
    assert "H100" in found("torch", device="cuda").detail


def test_a_torch_that_does_not_load_fails_with_its_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE", (sys.executable, "-c", "import no_such_torch"))
    finding = found("torch")
    assert finding.verdict == "fail" and "no_such_torch" in finding.detail


def test_what_fails_is_the_exit_code_and_the_last_line() -> None:
    result = smoe("doctor", "/no/where", SMOE_PORT="0")
    assert result.returncode == 1
    assert "fail  model        /no/where" in result.stdout
    assert result.stdout.splitlines()[-1] == "smoe serve would not start: 1 of 7 checks failed"


def test_the_engine_is_looked_for_where_serve_looks_whatever_folder_this_is_run_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code = f"import json, os; print(json.dumps({FOUND!r} | dict(torch_version=os.getcwd())))"
    monkeypatch.setattr(doctor, "PROBE", (sys.executable, "-c", code))
    folder = found("torch").detail.partition(";")[0]
    assert (Path(folder) / "engine" / "probe.py").is_file()
