"""`smoe plan --rate`: more load needs more servers, and one line for each error."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from engine.planning.hardware import HARDWARE, Hardware
from model.checkpoint.config_file import load_config
from server.cli.main import app
from tests.support.checkpoints.adapters import random_tensors, save_adapter
from tests.support.checkpoints.header_only import MIXTRAL_8X7B, save_headers
from tests.support.paths import DEMO, ROOT

STEPS = [
    {"kind": "prefill", "batch": 1, "context": 128, "seconds": 0.05},
    {"kind": "decode", "batch": 1, "context": 256, "seconds": 0.01},
    {"kind": "decode", "batch": 64, "context": 256, "seconds": 0.04},
]
FLAGS = ("--prompt-tokens", "8,64", "--output-tokens", "8", "--slo-ttft", "0.5", "--slo-gap", "0.1")


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    path = tmp_path / "steps.json"
    path.write_text(json.dumps({"kind": "engine", "steps": STEPS}))
    return path


def plan(*arguments: object, **variables: str) -> Result:
    cleared: dict[str, str | None] = {name: None for name in os.environ if name.startswith("SMOE_")}
    return CliRunner().invoke(app, ["plan", *map(str, arguments)], env=cleared | variables)


def answer(*arguments: object, **variables: str) -> dict[str, Any]:
    result = plan(*arguments, *FLAGS, "--json", **variables)
    fields: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == (0 if fields["best"] else 1)
    return fields


def test_more_load_needs_more_servers_and_one_less_is_too_few(steps: Path) -> None:
    needed = []
    for rate in (1, 300, 1200):
        found = answer("--rate", rate, "--steps", steps, SMOE_MAX_NUM_BATCHED_TOKENS="128")
        needed.append(found["best"]["num_replicas"])
        assert found["best"]["ttft_p99_s"] <= 0.5 and found["best"]["gap_p99_s"] <= 0.1
        less = found["one_less"]
        assert less is None or less["is_overloaded"] or less["ttft_p99_s"] > 0.5 or less["gap_p99_s"] > 0.1
    assert needed[0] == 1 < needed[1] < needed[2]
    assert 3 * needed[1] <= needed[2] <= 5 * needed[1]  # about in proportion


def test_the_table_ends_with_a_verdict_and_the_flag_that_it_assumes(steps: Path) -> None:
    result = plan("--rate", 5, "--steps", steps, *FLAGS)
    lines = result.stdout.splitlines()
    assert (result.exit_code, lines[-2]) == (0, "verdict: 1 server is enough")
    assert re.search(r" --max-num-batched-tokens \d+$", lines[-1])
    assert max(map(len, lines)) <= 130


def test_the_printed_command_has_the_device_and_the_adapters(steps: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "sql", random_tensors(load_config(DEMO)[0], rank=8))
    given = ("--device", "cpu", "--lora", f"sql={adapter}")
    printed = shlex.split(plan("--rate", 5, "--steps", steps, *FLAGS, *given).stdout.splitlines()[-1])
    assert printed[printed.index("--device") + 1] == "cpu"
    assert printed[printed.index("--lora") + 1] == f"sql={adapter}"
    assert "--device" not in plan("--rate", 5, "--steps", steps, *FLAGS).stdout


def test_the_printed_command_is_that_of_the_plan_with_a_budget(steps: Path) -> None:
    given = (DEMO, "--memory", "1GiB", "--max-model-len", 512, "--rope-theta", 12345)
    of_plan = shlex.split(plan(*given).stdout.splitlines()[-1])
    *printed, flag, budget = shlex.split(plan(*given, "--rate", 5, "--steps", steps, *FLAGS).stdout.splitlines()[-1])
    assert printed == of_plan and (flag, budget.isdecimal()) == ("--max-num-batched-tokens", True)
    assert printed[2] == str(DEMO) and {"--rope-theta", "--max-model-len", "--kv-cache-memory-bytes"} <= set(printed)


def test_a_trace_needs_more_servers_when_it_is_sped_up(steps: Path) -> None:
    trace = steps.with_name("trace.jsonl")
    line = {"prompt_tokens": 32, "output_tokens": 8}
    trace.write_text("".join(json.dumps({"arrival_s": n / 10} | line) + "\n" for n in range(400)))
    needed = [
        answer("--trace", trace, "--steps", steps, *rate, SMOE_MAX_NUM_BATCHED_TOKENS="128")["best"]["num_replicas"]
        for rate in ((), ("--rate", 1000))
    ]
    assert needed[0] == 1 < needed[1]
    assert plan("--trace", trace, "--steps", steps).stdout.startswith("trace.jsonl as it was recorded; first token")


def test_limits_that_a_request_alone_exceeds_end_with_1(steps: Path) -> None:
    result = plan("--rate", 1, "--steps", steps, "--prompt-tokens", 8, "--output-tokens", 4, "--slo-gap", 0.001)
    assert result.exit_code == 1
    assert "no number of servers is enough" in result.stdout


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_headers(tmp_path_factory.mktemp("capacity") / "Mixtral-8x7B-Instruct-v0.1", MIXTRAL_8X7B)


def predicted(model: Path, *arguments: object) -> dict[str, Any]:
    """Return the best outcome for one request per second, with predicted times of steps."""
    load = ("--rate", 1, "--prompt-tokens", 64, "--output-tokens", 4, "--slo-ttft", 60, "--slo-gap", 60)
    result = plan(model, *load, *arguments, "--json", SMOE_MAX_NUM_BATCHED_TOKENS="64")
    assert result.exit_code == 0, result.stderr
    best: dict[str, Any] = json.loads(result.stdout)["best"]
    return best


def test_a_prediction_needs_no_measurement_and_more_sockets_or_hosts_make_gaps_shorter(mixtral: Path) -> None:
    gaps_s = [
        predicted(mixtral, "--memory", "200GiB", *arguments)["gap_p50_s"]
        for arguments in (
            ("--hardware", "epyc-9654"),
            ("--hardware", "epyc-9654", "--tensor-parallel-size", 2, "--nnodes", 2, "--network-gbit", 100),
            ("--hardware", "2x-epyc-9654"),
        )
    ]
    assert gaps_s[0] > gaps_s[1] > gaps_s[2] > gaps_s[0] / 2


def test_the_memory_of_a_gpu_is_known(mixtral: Path) -> None:
    """80 GB hold the weights in int8 or fp8 but not in bfloat16."""
    result = plan(mixtral, "--rate", 1, "--hardware", "h100", "--output-tokens", 8, "--prompt-tokens", 64)
    lines = result.stdout.splitlines()
    assert lines[1] == "predicted, not measured: h100 at 70% of its bandwidth and 50% of its peak, weights in int8"
    assert " --dtype bfloat16 --quantization int8 --device cuda " in lines[-1]


def test_hosts_are_counted_and_their_flags_are_printed(mixtral: Path) -> None:
    hosts = ("--tensor-parallel-size", 4, "--nnodes", 2, "--memory", "64GiB", "--hardware", "epyc-9654")
    result = plan(
        mixtral, "--rate", 0.1, *hosts, "--output-tokens", 8, "--prompt-tokens", 64, "--slo-gap", 9, "--slo-ttft", 9
    )
    lines = result.stdout.splitlines()
    assert lines[1].endswith("weights in bfloat16")
    assert lines[2] == "each server is a group of 2 hosts with 25 Gbit/s between them"
    assert lines[-2] == "verdict: 1 server is enough, on 2 hosts"
    assert " --tensor-parallel-size 4 --nnodes 2 --node-rank 0 --master-addr HOST0 " in lines[-1]


def test_the_help_and_the_page_name_all_hardware_with_its_figures() -> None:
    page = (ROOT / "docs" / "operation" / "capacity.md").read_text()
    help_text = " ".join(plan("--help").stdout.split())
    for name, hardware in HARDWARE.items():
        assert name in help_text and f"`{name}`" in page
        if hardware.is_gpu:
            figures = f"{hardware.memory_bytes_per_s / 1e9:,.0f} GB/s | {hardware.operations_per_s / 1e12:.0f} Tflop/s"
            assert f"| `{name}` | {figures} |" in page
    assert HARDWARE["epyc-9654"] == Hardware(460.8e9, pytest.approx(14.7456e12))
    assert HARDWARE["xeon-8480"] == Hardware(307.2e9, pytest.approx(114.688e12))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "1"], "--rate and --steps need each other"),
        (["--hardware", "h100"], "--rate and --steps need each other, or --trace and --hardware"),
        (["--rate", "1", "--hardware", "abacus"], "--hardware abacus: should be one of a100, h100, h200, epyc-9654, "),
        (["--rate", "1", "--steps", "STEPS", "--hardware", "epyc-9654"], "--steps and --hardware exclude each other"),
        (
            ["--rate", "1", "--hardware", "h100", "--device", "cpu"],
            "--hardware h100 is --device cuda, not cpu: leave out",
        ),
        (
            ["--rate", "1", "--hardware", "epyc-9654", "--device", "cuda"],
            "--hardware epyc-9654 is --device cpu, not cuda",
        ),
        (["--rate", "1", "--hardware", "epyc-9654", "--network-gbit", "0"], "--network-gbit should be more than 0"),
        (
            ["--rate", "1", "--steps", "STEPS", "--tensor-parallel-size", "2", "--nnodes", "2"],
            "--steps are those of one host: with --nnodes give --hardware",
        ),
        (
            ["--rate", "1", "--hardware", "h100", "--tensor-parallel-size", "2"],
            "steps of several GPUs are not predicted",
        ),
        (["--steps", "STEPS"], "--rate and --steps need each other"),
        (["--rate", "0", "--steps", "STEPS"], "should be more than 0"),
        (["--rate", "nan", "--steps", "STEPS"], "should be more than 0"),
        (["--trace", "/nowhere.csv", "--steps", "STEPS"], "/nowhere.csv: No such file"),
        (["--trace", "EMPTY", "--steps", "STEPS"], "the file has no requests"),
        (["--rate", "1", "--steps", "/nowhere.json"], "No such file"),
        (["--rate", "1", "--steps", "EMPTY"], "is not JSON"),
        (["--rate", "1", "--steps", "NESTED"], "is not JSON"),
        (["--rate", "1", "--steps", "NAN"], "has a step without rows or time"),
        (["--rate", "1", "--steps", "STEPS", "--prompt-tokens", "x"], "should be a number"),
        (["--rate", "1", "--steps", "STEPS", "--prompt-tokens", "1000000"], "--prompt-tokens"),
        (["--rate", "1", "--steps", "STEPS", "--memory", "1MiB"], "does not fit the memory"),
    ],
)
def test_bad_input_is_one_line(steps: Path, arguments: list[str], message: str) -> None:
    empty = steps.with_name("empty.json")
    empty.write_text("")
    nested = steps.with_name("nested.json")
    nested.write_text("[" * 100_000)
    nan = steps.with_name("nan.json")
    nan.write_text(json.dumps({"kind": "engine", "steps": [*STEPS, STEPS[1] | {"seconds": float("nan")}]}))
    files = {"STEPS": steps, "EMPTY": empty, "NESTED": nested, "NAN": nan}
    result = plan(*[files.get(item, item) for item in arguments])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


def test_a_manifest_is_not_written_for_a_load() -> None:
    result = plan("--rate", 5, "--write-manifest")
    assert result.exit_code == 2 and "--write-manifest" in result.stderr
