"""`smoe doctor` reports everything that keeps the server from starting."""

import json
import os
import re
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from engine.capacity import checkpoint_files
from model.checkpoint.config_file import load_config
from server.batch.store import DATABASE_NAME, Store
from server.cli import doctor
from server.cli.colours import Colours
from server.cli.doctor import Check, as_table, run_checks
from server.cli.main import app
from server.fairness import budgets
from server.settings.sources import load_settings
from tests.server.cli.test_main import smoe
from tests.support.checkpoints.adapters import random_tensors, save_adapter
from tests.support.checkpoints.header_only import MIXTRAL_8X7B, save_headers
from tests.support.paths import DEMO
from tests.support.tls import CERTIFICATE, EXPIRED_CERTIFICATE, EXPIRED_KEY, KEY

REPORT = {
    "torch_version": "2.11",
    "gpus": [],
    "gpu_free_bytes": [],
    "num_cores": 2,
    "isas": ["portable", "avx2"],
    "fastest_isa": "avx2",
    "native_error": None,
    "launcher_error": None,
    "cache_error": None,
}


def set_probe(monkeypatch: pytest.MonkeyPatch, **changed: object) -> None:
    """Replace the probe by one that reports REPORT with these changes."""
    code = f"print({json.dumps(REPORT | changed)!r})"
    monkeypatch.setattr(doctor, "PROBE", (sys.executable, "-c", code))


def run_check(name: str, **flags: object) -> Check:
    [check] = [check for check in run_checks(load_settings({"port": 0, **flags})) if check.name == name]
    return check


def doctor_here(*arguments: str, **variables: str) -> Result:
    """Run the command in this process. set_probe() replaces what it asks of another one."""
    cleared: dict[str, str | None] = {name: None for name in os.environ if name.startswith("SMOE_")}
    return CliRunner().invoke(app, ["doctor", *arguments], env=cleared | variables)


def test_verdicts_are_coloured_where_the_terminal_has_colours() -> None:
    checks = [Check("port", "ok", "free"), Check("memory", "warn", "little"), Check("model", "fail", "none")]
    lines = as_table(checks, Colours(is_on=True)).splitlines()
    assert [line.split("m", 1)[0] for line in lines[:3]] == ["\x1b[32", "\x1b[33", "\x1b[1;31"]
    assert "\x1b" not in as_table(checks)


def test_the_demo_on_this_machine_would_start() -> None:
    result = smoe("doctor", "--json", SMOE_PORT="0")
    report = json.loads(result.stdout)
    assert (result.returncode, report["ok"]) == (0, True), result.stdout
    verdicts = {check["name"]: check["verdict"] for check in report["findings"]}
    assert verdicts.keys() == {
        "python",
        "torch",
        "cpu",
        "memory",
        "requests",
        "model",
        "checksums",
        "tokenizer",
        "template",
        "defaults",
        "port",
        "open files",
    }
    assert verdicts["model"] == verdicts["tokenizer"] == "ok"


def test_a_damaged_checkpoint_fails_by_the_name_of_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_probe(monkeypatch)
    damaged = shutil.copytree(DEMO, tmp_path / "damaged", ignore=shutil.ignore_patterns("training"))
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    check = run_check("model", model=str(damaged))
    assert check.verdict == "fail" and "model.safetensors" in check.detail
    shutil.copy(DEMO / "model.safetensors", weights)
    (damaged / "tokenizer.model").unlink()
    assert run_check("model", model=str(damaged)).verdict == "ok"
    assert run_check("tokenizer", model=str(damaged)).verdict == "fail"


def test_files_that_were_written_after_their_checksums_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_probe(monkeypatch)
    model = shutil.copytree(DEMO, tmp_path / "model", ignore=shutil.ignore_patterns("training"))
    listed_s = (model / "SHA256SUMS").stat().st_mtime
    for file in model.iterdir():
        changed_s = listed_s + (9 if file.name in ("model.safetensors", "config.json") else 0)
        os.utime(file, (changed_s, changed_s))
    check = run_check("checksums", model=str(model))  # files as small as these are compared with the list
    assert (check.verdict, check.remedy) == ("ok", None)
    monkeypatch.setattr(checkpoint_files, "HASHED_BYTES", 0)  # as if they were large
    check = run_check("checksums", model=str(model))
    assert check.verdict == "warn" and check.detail.startswith("config.json and 1 more: written after SHA256SUMS")
    assert check.remedy is not None
    assert f"smoe plan {model} --write-manifest" in check.remedy and "smoe serve --verify" in check.remedy
    os.utime(model / "SHA256SUMS", (listed_s + 10, listed_s + 10))
    assert run_check("checksums", model=str(model)).verdict == "ok"
    names = [check.name for check in run_checks(load_settings({"port": 0, "model": str(model), "verify": True}))]
    (model / "SHA256SUMS").unlink()
    names += [check.name for check in run_checks(load_settings({"port": 0, "model": str(model)}))]
    assert "model" in names and "checksums" not in names


@pytest.mark.parametrize(
    ("file", "content", "name"),
    [
        ("added_tokens.json", {"<x>": 3072}, "tokenizer"),
        ("tokenizer_config.json", {"chat_template": "{% if %}"}, "template"),
        ("generation_config.json", {"temperature": 3}, "defaults"),
    ],
)
def test_text_files_that_serve_refuses_fail(
    file: str, content: dict[str, object], name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_probe(monkeypatch)
    damaged = shutil.copytree(DEMO, tmp_path / "damaged", ignore=shutil.ignore_patterns("training"))
    (damaged / file).write_text(json.dumps(content))
    checks = run_checks(load_settings({"port": 0, "model": str(damaged)}))
    assert [check.name for check in checks if check.verdict == "fail"] == [name]


def test_adapters_are_counted_with_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_probe(monkeypatch)
    adapter = save_adapter(tmp_path, random_tensors(load_config(DEMO)[0], rank=8))
    check = run_check("model", model=str(DEMO), lora=[f"sql={adapter}"])
    assert check.verdict == "ok" and re.search(r", and [\d.]+ [KM]iB of adapters; fits", check.detail), check.detail
    (adapter / "adapter_config.json").unlink()
    check = run_check("model", model=str(DEMO), lora=[f"sql={adapter}"])
    assert check.verdict == "fail" and "adapter_config.json is missing" in check.detail


def test_a_file_of_keys_is_read_and_no_key_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_probe(monkeypatch)
    keys = tmp_path / "keys"
    keys.write_text("one-secret\ntwo-secret\n")
    check = run_check("keys", api_key=["third-secret"], api_key_file=str(keys))
    assert (check.verdict, check.detail) == ("ok", "clients must send one of 3")
    keys.write_text("")
    result = smoe("doctor", "--api-key-file", str(keys))
    assert (result.returncode, result.stderr) == (2, "smoe: --api-key-file: has no keys; write one per line\n")


@pytest.mark.parametrize(
    ("cert", "key", "verdict", "detail"),
    [
        (CERTIFICATE, KEY, "ok", r"has its key and is valid until 2\d{3}-\d\d-\d\d"),
        (CERTIFICATE, EXPIRED_KEY, "fail", "these are not a certificate and its key"),
        (EXPIRED_CERTIFICATE, EXPIRED_KEY, "warn", "expired_cert.pem: clients will refuse it: certificate has expired"),
    ],
)
def test_a_certificate_is_checked(
    cert: Path, key: Path, verdict: str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_probe(monkeypatch)
    check = run_check("certificate", ssl_certfile=str(cert), ssl_keyfile=str(key))
    assert check.verdict == verdict and re.search(detail, check.detail)


def test_a_step_log_is_tried_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_probe(monkeypatch)
    log = tmp_path / "steps.jsonl"
    assert run_check("step log", step_log=str(log)).verdict == "ok" and not log.exists()
    log.write_text("steps\n")
    assert run_check("step log", step_log=str(log)).verdict == "ok" and log.read_text() == "steps\n"
    check = run_check("step log", step_log=str(tmp_path))
    assert (check.verdict, check.detail) == ("fail", f"--step-log {tmp_path}: is not a regular file")


def test_a_folder_of_batches_is_tried_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_probe(monkeypatch)
    folder = tmp_path / "a" / "batches"
    assert run_check("batches", batch_dir=str(folder)).verdict == "ok" and not any(tmp_path.iterdir())
    folder.mkdir(parents=True)
    assert run_check("batches", batch_dir=str(folder)).verdict == "ok" and not any(folder.iterdir())
    Store(folder).close()
    assert run_check("batches", batch_dir=str(folder)).verdict == "ok"
    (folder / DATABASE_NAME).write_bytes(b"no database" * 100)
    check = run_check("batches", batch_dir=str(folder))
    assert check.verdict == "fail" and f"--batch-dir {folder}: " in check.detail
    assert run_check("batches", batch_dir="/proc/nowhere").verdict == "fail"


def test_missing_assertions_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    set_probe(monkeypatch)
    assert run_check("python").verdict == "ok"
    monkeypatch.setattr(doctor, "are_assertions_off", lambda: True)
    check = run_check("python")
    assert check.verdict == "fail" and "python -O" in check.detail


def test_a_taken_port_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    set_probe(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        check = run_check("port", port=port)
    assert check.verdict == "fail" and str(port) in check.detail
    assert run_check("port", port=port).verdict == "ok"


def test_a_unix_socket_that_can_be_made_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    set_probe(monkeypatch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.sock"
        assert run_check("port", uds=path).verdict == "ok" and not path.exists()
        path.write_text("a file")
        assert run_check("port", uds=path).verdict == "fail" and path.read_text() == "a file"


def test_a_missing_native_library_is_a_warning_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    set_probe(monkeypatch, native_error="the CPU library was not built", isas=[])
    check = run_check("cpu")
    assert check.verdict == "warn" and check.remedy and "not built" in check.detail


def test_a_missing_gpu_fails_if_the_settings_need_one(monkeypatch: pytest.MonkeyPatch) -> None:
    set_probe(monkeypatch)
    assert run_check("torch", device="cuda").verdict == "fail"
    assert run_check("torch").verdict == "ok"
    set_probe(monkeypatch, gpus=["H100"])
    assert "H100" in run_check("torch", device="cuda").detail


@pytest.mark.parametrize("flags", [{"backend": "triton"}, {"quantization": "fp8"}])
def test_flags_that_only_gpus_follow_fail_without_one(flags: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    set_probe(monkeypatch)
    check, [(name, value)] = run_check("torch", **flags), flags.items()
    assert (check.verdict, check.detail) == ("fail", f"2.11; no GPU, but --{name} {value} needs one")
    set_probe(monkeypatch, gpus=["H100"])
    assert run_check("torch", **flags).verdict == "ok"
    assert run_check("torch", **flags, device="cpu").verdict == "fail"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"backend": "native"}, "--backend native runs on the CPU: add --device cpu"),
        ({"quantization": "lossless"}, "--quantization lossless runs on the CPU: add --device cpu"),
        ({"quantization": "int4"}, "--quantization int4 runs on the CPU: add --device cpu"),
        ({"quantization": "int4", "backend": "triton"}, "--quantization int4 runs on the CPU: add --device cpu"),
        ({"quantization": "lossless", "backend": "reference"}, "--quantization lossless runs on the CPU"),
        ({"quantization": "fp8", "backend": "reference"}, "--quantization fp8 runs only on the triton backend"),
    ],
)
def test_flags_that_no_gpu_follows_fail_on_one(
    flags: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_probe(monkeypatch, gpus=["H100"], gpu_free_bytes=[70 << 30])
    for device in ("auto", "cuda"):
        check = run_check("torch", **flags, device=device)
        assert check.verdict == "fail" and check.detail.startswith(f"H100: {words}")
    assert run_check("torch", quantization="int4", backend="reference").verdict == "ok"
    assert words not in run_check("torch", **flags, device="cpu").detail


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_headers(tmp_path_factory.mktemp("doctor") / "Mixtral-8x7B", MIXTRAL_8X7B))


def model_on_gpus(monkeypatch: pytest.MonkeyPatch, free_gib: list[int | None], **flags: object) -> Check:
    """Return the check of the model on a machine with GPUs and too little main memory for any of its formats."""
    monkeypatch.setattr(doctor, "available_bytes", lambda: 16 << 30)
    free = [None if size is None else size << 30 for size in free_gib]
    set_probe(monkeypatch, gpus=["H100"] * len(free), gpu_free_bytes=free)
    return run_check("model", **flags)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_model_for_a_gpu_is_judged_by_the_memory_of_the_gpu(
    device: str, mixtral: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"model": mixtral, "device": device}
    check = model_on_gpus(monkeypatch, [70], **flags, quantization="fp8")
    assert check.verdict == "ok" and " in fp8; with 70.0 GiB free on a GPU: fits" in check.detail, check.detail
    check = model_on_gpus(monkeypatch, [24], **flags, quantization="fp8")
    assert check.verdict == "fail" and check.remedy is None, "a GPU takes no int4, and packs are for CPUs"
    check = model_on_gpus(monkeypatch, [70], **flags)
    assert check.verdict == "fail" and "--quantization int8 --device cuda" in str(check.remedy)
    assert model_on_gpus(monkeypatch, [70], model=mixtral, device="cpu").verdict == "fail"


def test_of_several_gpus_those_of_the_ranks_count(mixtral: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"model": mixtral, "tensor_parallel_size": 2, "first_gpu": 1}
    check = model_on_gpus(monkeypatch, [10, 70, 60], **flags)
    assert check.verdict == "ok" and "with 60.0 GiB free on a GPU: fits" in check.detail
    assert model_on_gpus(monkeypatch, [70, 70, 10], **flags).verdict == "fail"
    for unknown in ([70, 70, None], [70, 70]):
        assert "is not judged" in model_on_gpus(monkeypatch, unknown, **flags).detail


@pytest.mark.parametrize("free_gib", [[None], []])
def test_whether_a_model_fits_a_gpu_is_not_judged_if_its_memory_is_not_known(
    free_gib: list[int | None], mixtral: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = model_on_gpus(monkeypatch, free_gib, model=mixtral, device="cuda")
    assert check.verdict == "warn" and "whether it fits is not judged" in check.detail and check.remedy is None
    check = model_on_gpus(monkeypatch, free_gib, model=mixtral, device="cuda", max_model_len=99_999)
    assert check.verdict == "fail" and "--max-model-len 99999 exceeds the model's context" in check.detail


def test_packs_and_what_only_cpus_compute_stay_on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    assert smoe("pack", str(DEMO), "-o", str(packed)).returncode == 0
    set_probe(monkeypatch, gpus=["H100"], gpu_free_bytes=[0], launcher_error="no C compiler (gcc or clang)")
    assert run_check("torch", model=str(packed)).verdict == run_check("model", model=str(packed)).verdict == "ok"
    assert "packs are for the native backend on a CPU" in run_check("model", model=str(packed), device="cuda").detail
    adapter = save_adapter(tmp_path, random_tensors(load_config(DEMO)[0], rank=8))
    assert "not computed on a GPU" in run_check("model", lora=[f"sql={adapter}"]).detail


def test_instructions_that_the_cpu_lacks_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    set_probe(monkeypatch)
    check = run_check("cpu", isa="avx512")
    assert (check.verdict, check.detail) == ("fail", "2 cores; --isa avx512 is not available here, but portable, avx2")
    assert run_check("cpu", isa="portable").detail == "2 cores; the native library runs portable (of portable, avx2)"


def test_the_instruction_set_that_auto_selects_is_named_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    set_probe(monkeypatch, isas=["portable", "avx512vnni", "avx512bf16"], fastest_isa="avx512vnni")
    detail = "2 cores; the native library runs avx512vnni (of portable, avx512vnni, avx512bf16)"
    assert run_check("cpu").detail == detail


def test_fewer_gpus_than_ranks_fail_unless_the_cpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    set_probe(monkeypatch, gpus=["H100", "H100"])
    check = run_check("torch", tensor_parallel_size=4)
    words = "--tensor-parallel-size 4 needs GPUs 0 to 3, and 2 are visible here; --device cpu works"
    assert (check.verdict, check.detail) == ("fail", f"H100, H100: {words}")
    words = "--first-gpu 3 needs GPU 3, and 2 are visible here; --device cpu works"
    assert run_check("torch", first_gpu=3).detail == f"H100, H100: {words}"
    assert run_check("torch", tensor_parallel_size=4, device="cpu").verdict == "ok"
    assert run_check("torch", tensor_parallel_size=2).verdict == "ok"
    assert run_check("torch", tensor_parallel_size=4, nnodes=2, master_addr="10.0.0.1").verdict == "ok"


def test_a_torch_that_does_not_load_fails_with_the_last_line_of_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE", (sys.executable, "-c", "import no_such_torch"))
    check = run_check("torch")
    assert check.verdict == "fail" and "no_such_torch" in check.detail


def test_a_failed_check_sets_the_exit_code_and_the_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    set_probe(monkeypatch)
    result = doctor_here("/no/where", SMOE_PORT="0")
    assert result.exit_code == 1
    assert "fail  model        /no/where" in result.stdout
    assert result.stdout.splitlines()[-1] == "smoe serve would not start: 1 of 8 checks failed"


def test_the_flags_of_serve_decide_and_not_only_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    set_probe(monkeypatch)
    flags = ("--quantization", "int8", "--kv-cache-memory-bytes", "64MiB", "--max-model-len", "512", "--device", "cpu")
    result = doctor_here("--port", "0", *flags, SMOE_PORT="1")
    assert result.exit_code == 0, result.stdout
    assert " in int8; fits" in result.stdout and "127.0.0.1:0 is free" in result.stdout
    result = doctor_here("--port", "0", "--kv-cache-memory-bytes", "1024GiB")
    assert result.exit_code == 1 and "the configured KV cache takes 1024.0 GiB" in result.stdout


def test_the_file_of_settings_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_probe(monkeypatch)
    (tmp_path / "smoe.yaml").write_text("port: 0\nquantization: int4\n")
    result = doctor_here("--config", str(tmp_path / "smoe.yaml"))
    assert result.exit_code == 0 and " in int4; fits" in result.stdout


def test_the_probe_runs_in_the_folder_of_the_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    code = f"import json, os; print(json.dumps({REPORT!r} | dict(torch_version=os.getcwd())))"
    monkeypatch.setattr(doctor, "PROBE", (sys.executable, "-c", code))
    folder = run_check("torch").detail.partition(";")[0]
    assert (Path(folder) / "engine" / "startup" / "probe.py").is_file()


def test_a_gpu_without_a_c_compiler_fails_unless_the_cpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    set_probe(monkeypatch, gpus=["H100"], launcher_error="no C compiler (gcc or clang) is installed")
    check = run_check("torch")
    assert check.verdict == "fail" and "no C compiler" in check.detail and "apt-get install gcc" in str(check.remedy)
    assert run_check("torch", device="cpu").verdict == "ok"
    assert run_check("torch", backend="reference").verdict == "ok"


def test_a_cache_that_triton_cannot_write_has_a_remedy_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    set_probe(monkeypatch, gpus=["H100"], cache_error="/home/smoe/.triton/cache cannot be written")
    check = run_check("torch")
    assert (check.verdict, check.remedy) == ("fail", "TRITON_CACHE_DIR names another directory")
    assert "/home/smoe/.triton/cache cannot be written" in check.detail
    assert run_check("torch", device="cpu").verdict == "ok"


@pytest.mark.parametrize(
    ("limit_mib", "gpus", "verdict", "is_reduced"),
    [
        (512, [], "warn", True),
        (1536, [], "ok", True),
        (1536, ["H100"], "ok", False),  # weights and KV cache are not in this memory
        (64 << 10, [], "ok", False),
    ],
)
def test_the_memory_for_requests_is_what_the_server_would_have(
    monkeypatch: pytest.MonkeyPatch, limit_mib: int, gpus: list[str], verdict: str, is_reduced: bool
) -> None:
    set_probe(monkeypatch, gpus=gpus)
    for module in (doctor, budgets):
        monkeypatch.setattr(module, "memory_limit_bytes", lambda: limit_mib << 20)
    monkeypatch.setattr(doctor, "available_bytes", lambda: limit_mib << 20)
    check = run_check("requests")
    assert (check.verdict, "reduced to fit" in check.detail) == (verdict, is_reduced)
