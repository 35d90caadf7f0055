"""`smoe plan`: JSON, a table, flags that serve accepts, and one line for each error."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from engine.capacity.machine.host_resources import format_bytes
from engine.capacity.memory_plan import plan_memory
from engine.config import EngineConfig
from model.checkpoint.config_file import load_config
from server.cli.main import app
from server.settings.engine_config import engine_config
from server.settings.sources import load_settings
from tests.support.checkpoints.adapters import random_tensors, save_adapter
from tests.support.checkpoints.gguf import GgufShape, write_gguf
from tests.support.checkpoints.header_only import MIXTRAL_8X7B, MIXTRAL_8X22B, save_headers
from tests.support.paths import DEMO, ROOT

GIB = 1 << 30


def plan(*arguments: str | Path, **variables: str) -> Result:
    cleared: dict[str, str | None] = {name: None for name in os.environ if name.startswith("SMOE_")}
    return CliRunner().invoke(app, ["plan", *map(str, arguments)], env=cleared | variables)


def as_json(*arguments: str | Path, **variables: str) -> dict[str, Any]:
    """Return the fields of --json. The exit code is 1 if nothing fits, and then there is no command either."""
    result = plan(*arguments, "--json", **variables)
    fields = json.loads(result.stdout)
    assert isinstance(fields, dict)
    assert (result.exit_code, result.stderr) == (0 if fields["command"] else 1, "")
    return fields


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_headers(tmp_path_factory.mktemp("plan") / "Mixtral-8x7B", MIXTRAL_8X7B)


@pytest.fixture(scope="module")
def in_float32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_headers(tmp_path_factory.mktemp("f32"), MIXTRAL_8X7B, "F32", torch_dtype="float32")


def test_a_program_reads_plain_numbers_in_bytes(mixtral: Path) -> None:
    fields = as_json(mixtral, "--memory", "160GiB")
    expected = {
        "model": "Mixtral-8x7B",
        "total_parameters": 46_702_792_704,
        "active_parameters": 12_879_925_248,
        "dtype": "bfloat16",
        "weight_bytes": 93_405_585_408,
        "weight_bytes_bf16": 93_405_585_408,
        "weight_bytes_float32": 186_811_170_816,
        "weight_bytes_int8": 46_870_172_672,
        "weight_bytes_int4": 25_040_294_912,
        "kv_bytes_per_token": 131_072,
        "memory_bytes": 160 * GIB,
        "max_model_len": 32768,
        "fits": True,
        "verdict": "fits",
    }
    assert {name: fields[name] for name in expected} == expected
    assert sum(fields["parameters"].values()) == fields["total_parameters"]
    assert fields["room"][0] == {"num_tokens": 512, "num_requests": 256, "bytes_per_request": 64 << 20}


def test_the_defaults_are_the_bundled_model_and_the_memory_of_this_machine() -> None:
    fields = as_json()
    assert (fields["model"], fields["total_parameters"]) == ("smoe-demo", 10_528_320)
    assert fields["memory_bytes"] > 0
    assert fields["command"][:3] == ["smoe", "serve", "--dtype"]


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        ((), {}),
        (("--memory", "88GiB"), {}),
        (("--max-model-len", "1000"), {}),
        (("--device", "cpu"), {}),
        ((), {"SMOE_BLOCK_SIZE": "32", "SMOE_MAX_NUM_SEQS": "3"}),
        ((), {"SMOE_NUM_KV_BLOCKS": "777"}),
        ((), {"SMOE_KV_CACHE_MEMORY_BYTES": "3GiB"}),
    ],
)
def test_the_flags_it_prints_give_the_engine_it_planned(
    mixtral: Path, arguments: tuple[str, ...], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = as_json(mixtral, "--memory", "120GiB", *arguments, **variables)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    served = plan_memory(served_with(fields["command"]), fields["memory_bytes"])
    assert served.limits is not None
    assert served.config.device == ("cpu" if "--device" in arguments else "auto")
    assert served.limits.num_blocks == fields["num_kv_blocks"]
    assert served.limits.max_model_len == fields["max_model_len"]
    assert served.kv_cache_bytes == fields["kv_cache_bytes"]
    assert served.limits.warnings == ()
    if "--kv-cache-memory-bytes" in fields["command"]:
        assert re.fullmatch(r"\d{1,6}[GM]iB", fields["command"][-1]), "a size that can be read"


def served_with(command: list[str]) -> EngineConfig:
    """Return the engine's configuration under a printed command line."""
    program, verb, directory, *flags = command
    assert (program, verb) == ("smoe", "serve")
    names = [name.removeprefix("--").replace("-", "_") for name in flags[::2]]
    return engine_config(load_settings(dict(zip(names, flags[1::2], strict=True))), Path(directory))


def test_adapters_are_counted_and_kept_in_the_command(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path, random_tensors(load_config(DEMO)[0], rank=8))
    fields = as_json(DEMO, "--memory", "1GiB", "--lora", f"sql={adapter}")
    size = fields["adapter_bytes"]["sql"]
    assert size == sum(tensor.nbytes for tensor in random_tensors(load_config(DEMO)[0], rank=8).values())
    assert fields["max_adapters"] == (GIB - (fields["needed_bytes"] - size)) // size
    command = fields["command"]
    assert command[command.index("--lora") + 1] == f"sql={adapter}"
    lines = plan(DEMO, "--memory", "1GiB", "--lora", f"sql={adapter}").stdout
    shown = format_bytes(size)
    assert f" + adapters {shown} + KV cache " in lines and f"\nadapter sql {shown}\n" in lines
    assert f"room for {fields['max_adapters']:,} adapters of {shown} beside one request of the full context" in lines
    refused = plan(DEMO, "--lora", f"sql={tmp_path / 'nowhere'}")
    assert (refused.exit_code, refused.stdout) == (2, "") and "no such directory" in refused.stderr


def test_if_float32_is_too_large_bfloat16_is_suggested_unless_float32_was_given(in_float32: Path) -> None:
    offered = as_json(in_float32, "--memory", "160GiB")
    assert (offered["dtype"], offered["fits"]) == ("float32", False)
    assert offered["verdict"] == "does not fit in float32, but in bfloat16"
    assert offered["command"][3:5] == ["--dtype", "bfloat16"]
    fixed = as_json(in_float32, "--memory", "160GiB", "--dtype", "float32")
    assert (fixed["fits"], fixed["command"]) == (False, [])


@pytest.mark.parametrize(("memory", "quantization"), [("60GiB", "int8"), ("30GiB", "int4")])
def test_if_bfloat16_is_too_large_the_largest_weights_that_fit_are_suggested(
    mixtral: Path, memory: str, quantization: str
) -> None:
    offered = as_json(mixtral, "--memory", memory)
    assert (offered["quantization"], offered["fits"]) == ("none", False)
    assert offered["verdict"] == f"does not fit in bfloat16, but in {quantization}"
    served = served_with(offered["command"])
    assert (served.dtype, served.quantization) == ("bfloat16", quantization)
    assert as_json(mixtral, "--memory", memory, "--quantization", quantization)["fits"]
    fixed = as_json(mixtral, "--memory", "20GiB", "--quantization", "int4")
    assert "the weights alone take 23.3 GiB in int4" in fixed["verdict"]


def test_hosts_share_the_weights_and_the_cache_and_the_fullest_one_limits_it(mixtral: Path) -> None:
    """Embedding, norms and gates are on both hosts: 2 * (32000 * 4096 + 65 * 4096 + 32 * 8 * 4096) bytes."""
    alone = as_json(mixtral, "--memory", "160GiB")
    ranks = ("--tensor-parallel-size", "2", "--nnodes", "2")
    hosts = as_json(mixtral, "--memory", "80GiB", *ranks)
    twice = 2 * (32000 * 4096 + 65 * 4096 + 32 * 8 * 4096)
    assert (hosts["nnodes"], alone["nnodes"]) == (2, 1)
    assert hosts["weight_bytes"] == alone["weight_bytes"] + twice == 2 * hosts["host_weight_bytes"]
    lost_blocks = alone["num_kv_blocks"] - hosts["num_kv_blocks"]
    assert abs(lost_blocks * hosts["kv_block_bytes"] - twice / 2) <= hosts["kv_block_bytes"]
    assert not as_json(mixtral, "--memory", "40GiB", *ranks)["fits"]
    table = plan(mixtral, "--memory", "80GiB", *ranks).stdout
    assert "memory of each of 2 hosts 80.0 GiB = weights 43.6 GiB + " in table
    assert "needs 48 GiB of memory on each host, or " in plan(mixtral, "--memory", "10GiB", *ranks).stdout


def test_gpus_share_the_weights_and_the_cache_as_hosts_do(mixtral: Path) -> None:
    hosts = as_json(mixtral, "--memory", "80GiB", "--tensor-parallel-size", "2", "--nnodes", "2")
    flags = ("--memory", "80GiB", "--tensor-parallel-size", "2", "--device", "cuda")
    gpus = as_json(mixtral, *flags)
    names = ("weight_bytes", "host_weight_bytes", "num_kv_blocks")
    assert [gpus[name] for name in names] == [hosts[name] for name in names]
    assert "memory of each of 2 GPUs 80.0 GiB = weights 43.6 GiB + " in plan(mixtral, *flags).stdout
    refused = plan(mixtral, "--memory", "10GiB", *flags[2:]).stdout
    assert "needs 48 GiB of memory on each GPU, or " in refused


def test_the_address_of_a_planned_host_may_be_missing_and_is_kept_if_it_is_given(mixtral: Path) -> None:
    flags = ("--memory", "80GiB", "--tensor-parallel-size", "2")
    command = as_json(mixtral, *flags, "--nnodes", "2")["command"]
    assert command[command.index("--nnodes") :][:6] == ["--nnodes", "2", "--node-rank", "0", "--master-addr", "HOST0"]
    given = as_json(mixtral, *flags, SMOE_NNODES="2", SMOE_MASTER_ADDR="10.0.0.1")["command"]
    assert given[given.index("--master-addr") + 1] == "10.0.0.1"


def test_a_plan_that_does_not_fit_names_a_memory_size_that_fits(mixtral: Path) -> None:
    refused = as_json(mixtral, "--memory", "20GiB")
    assert (refused["fits"], refused["max_model_len"], refused["kv_cache_bytes"]) == (False, None, 0)
    assert "the weights alone take 87.0 GiB in bfloat16, and 20.0 GiB are free" in refused["verdict"]
    assert refused["verdict"].endswith(
        "; it needs 95 GiB of memory, or 32 GiB in int4, for a context of 32,768 tokens; "
        "for 4,096 25 GiB in int4 are enough"
    )
    short = as_json(mixtral, "--memory", "25GiB")
    assert short["fits"] is False and short["max_model_len"] is None and "int4" in short["command"]
    given = as_json(mixtral, "--memory", "20GiB", "--max-model-len", "32768")["verdict"]
    assert given.endswith("; it needs 95 GiB of memory, or 32 GiB in int4")
    assert as_json(mixtral, "--memory", "32GiB", "--quantization", "int4")["verdict"] == "fits"
    assert as_json(mixtral, "--memory", "95GiB")["verdict"] == "fits"
    assert as_json(mixtral, "--memory", "94GiB")["verdict"].startswith(
        "fits with a shorter context; the full context needs 95 GiB"
    )


def test_what_fits_no_memory_here_can_be_packed_on_a_cpu(mixtral: Path) -> None:
    command = f"smoe pack {mixtral} --dtype bfloat16 --quantization int4 -o DIR"
    assert as_json(mixtral, "--memory", "20GiB")["pack_command"] == shlex.split(command)
    table = plan(mixtral, "--memory", "20GiB").stdout
    assert table.endswith(f"\nas a pack it is served from the disk, slowly (docs/packs.md):\n{command}\n")
    for arguments in (
        ("--memory", "26GiB"),
        ("--memory", "20GiB", "--device", "cuda"),
        ("--memory", "8GiB", "--max-model-len", "32768"),  # the KV cache has an eighth
    ):
        assert as_json(mixtral, *arguments)["pack_command"] == [], arguments


def test_no_more_requests_are_promised_than_a_step_may_have(mixtral: Path) -> None:
    table = plan(mixtral, "--memory", "160GiB").stdout
    assert "room for 256 requests of 512 tokens, at most 64.0 MiB each" in table
    table = plan(mixtral, "--memory", "160GiB", SMOE_MAX_NUM_SEQS="1").stdout
    assert "room for 1 request of 512 tokens" in table and "room for 1 request of 32,768 tokens" in table


def test_the_table_has_at_most_twenty_lines_and_ends_with_the_command(tmp_path: Path) -> None:
    path = save_headers(tmp_path / "a name with blanks", MIXTRAL_8X22B)
    lines = plan(path, "--memory", "320GiB").stdout.splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines[:-1])) <= 110
    assert "total                140,620,634,112" in lines[8]
    assert lines[-2] == "verdict: fits"
    assert shlex.split(lines[-1])[:3] == ["smoe", "serve", str(path)]


def test_it_needs_no_torch(mixtral: Path) -> None:
    script = (
        "import sys\n"
        f"sys.argv = ['smoe', 'plan', {str(mixtral)!r}, '--memory', '160GiB']\n"
        "from server.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    assert not {'torch', 'fastapi', 'uvicorn'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_variable_without_effect_is_named(mixtral: Path) -> None:
    result = plan(mixtral, "--memory", "160GiB", SMOE_PROT="9000")
    assert (result.exit_code, result.stderr) == (
        0,
        "smoe: warning: SMOE_PROT is not a setting; did you mean SMOE_PORT?\n",
    )


def test_a_gguf_file_is_named_as_such(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", GgufShape())
    assert plan(tmp_path).stdout.partition(":")[2].startswith(" GGUF file, ")


def truncated(path: Path) -> None:
    file = path / "model-00003.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)


def without_a_shard(path: Path) -> None:
    (path / "model-00003.safetensors").unlink()


def with_another_shape(path: Path) -> None:
    config = path / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 14336', '"intermediate_size": 14337'))


def without_config(path: Path) -> None:
    (path / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (truncated, "model-00003.safetensors"),
        (without_a_shard, "model-00003.safetensors"),
        (with_another_shape, "14337"),
        (without_config, "config.json"),
    ],
)
def test_a_damaged_checkpoint_exits_2_with_one_line(tmp_path: Path, damage: Callable[[Path], None], part: str) -> None:
    damage(save_headers(tmp_path, MIXTRAL_8X7B))
    assert_refused(plan(tmp_path), part)


@pytest.mark.parametrize(
    ("arguments", "variables", "part"),
    [
        (("/no/where",), {}, "/no/where"),
        (("org/name",), {"HF_HOME": "/no/where"}, "hf download org/name"),
        (("--memory", "much"), {}, "--memory: "),
        (("--memory", "0"), {}, "--memory: "),
        (("--memory", "0.1"), {}, "--memory: "),
        (("--memory", "80"), {}, "--memory 80: these are bytes; add a unit, such as 80GiB"),
        (("--max-model-len", "-1"), {}, "--max-model-len: "),
        (("--dtype", "int4"), {}, "--dtype: "),
        (("--quantization", "int3"), {}, "--quantization: "),
        ((), {"SMOE_BLOCK_SIZE": "0"}, "SMOE_BLOCK_SIZE: "),
    ],
)
def test_invalid_arguments_exit_2_with_one_line(
    arguments: tuple[str, ...], variables: dict[str, str], part: str
) -> None:
    assert_refused(plan(*arguments, **variables), part)


def assert_refused(result: Result, part: str) -> None:
    assert (result.exit_code, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("smoe: ")
    assert part in line


def test_lossless_weights_are_planned_where_they_are_asked_for(mixtral: Path) -> None:
    asked = (mixtral, "--memory", "80GiB", "--device", "cpu", "--quantization", "lossless")
    fields = as_json(*asked)
    assert fields["weight_bytes"] == 71_593_204_224 and fields["verdict"] == "fits"
    assert "lossless" in fields["command"]
    columns = plan(*asked).stdout.splitlines()[1].split()
    assert columns == ["parameters", "share", "float32", "bfloat16", "lossless", "int8", "int4"]
    short = as_json(mixtral, "--memory", "60GiB", "--device", "cpu", "--quantization", "lossless")
    assert "int8" in short["command"], "what is smaller"


def test_the_table_says_which_formats_fit_and_how_fast_one_client_can_be(mixtral: Path) -> None:
    """12,879,925,248 active parameters of 2 bytes at 100 GB/s: 3.9 tokens/s; 87.0, 43.7 and 23.3 GiB of weights."""
    lines = plan(mixtral, "--memory", "50GiB").stdout.splitlines()
    rows = {line.split("  ")[0]: line.split()[-4:] for line in lines}
    assert rows["fits 50.0 GiB"] == ["-", "no", "yes", "yes"]
    rates = [float(rate) for rate in rows["tokens/s at most, one client at 100 GB/s"]]
    assert rates[:2] == [1.9, 3.9] and rates[2] == pytest.approx(2 * 3.88, abs=0.3) and rates[3] > 12
    assert plan(mixtral, "--memory", "20GiB").stdout.count("yes") == 0
