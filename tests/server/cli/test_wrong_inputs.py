"""Wrong inputs of a command line: exit code 2, nothing on standard output, one line that names the way out."""

import json
import re
import sys
from pathlib import Path

import pytest
import typer.main

from server.cli.foreign_words import FOREIGN_COMMANDS, FOREIGN_FLAGS
from server.cli.main import app, main
from server.settings.flags import setting_flags
from tests.support.ports import free_port

pytestmark = pytest.mark.usefixtures("clean_environment")

# Arguments ({} is a fresh folder, {port} a port without a server), and what the line must contain.
WRONG = (
    ("serv", "serve"),
    ("serve --prot 9000", "--port"),
    ("serve --port", "(see smoe serve --help)"),
    ("bench serve --rate", "(see smoe bench serve --help)"),
    ("chat serve --url", "(see smoe chat --help)"),
    ("serve --port 70000", "--port: should be"),
    ("serve --port http", "--port: should be"),
    ("serve --dtype fp16", "float32 or bfloat16"),
    ("serve --quantization q4", "int4"),
    ("serve --max-model-len -5", "--max-model-len"),
    ("serve --max-model-len 1.5", "--max-model-len"),
    ("serve --kv-cache-memory-bytes 20GB5", "--kv-cache-memory-bytes"),
    ("serve --threads 0", "--threads"),
    ("serve --host 127.0.0.1:8000", "--host 127.0.0.1 --port 8000"),
    ("serve --host [::1]:8000", "--host ::1 --port 8000"),
    ("plan {}/damaged", "not valid JSON"),
    ("serve --experts-per-token 0", "--experts-per-token"),
    ("serve --log-level loud", "info"),
    ("serve --log-format yaml", "json"),
    ("serve --config {}/none.yaml", "No such file"),
    ("serve --config {}/list.yaml", "key: value"),
    ("serve --config {}/broken.yaml", "not YAML"),
    ("serve --config {}/unknown.yaml", "did you mean max_model_len?"),
    ("serve --api-key-file {}/none", "--api-key-file"),
    ("serve --ssl-certfile {}/empty.gguf", "--ssl-keyfile"),
    ("serve ./nope", "smoe models"),
    ("serve ~nobody-has-this-name/m", "no such user"),
    ("plan {}/two", "name one, such as"),
    ("plan {}/empty.gguf", "empty.gguf"),
    ("serve mixtral", "smoe models"),
    ("plan https://hub.example/org/name", "write org/name"),
    ("plan https://hub.example/org/name/tree/main", "write org/name"),
    ("plan org/name/", "write org/name"),
    ("serve org/name", "hf download org/name"),
    ("serve org/name:Q4_K_M", "hf download org/name --include"),
    ("serve --nope", "(see smoe serve --help)"),
    ("bench serve --nope", "(see smoe bench serve --help)"),
    ("nope", "(see smoe --help)"),
    ("serve --ctx-size 4096", "--ctx-size; `--max-model-len N` sets the context (see"),
    ("doctor -c 4096", "-c; `--max-model-len N`"),
    ("serve -ngl 33", "-ngl; `--device`"),
    ("serve -c4096", "-c4096; `--max-model-len N`"),
    ("serve -cb", "No such option: -cb (see"),
    ("serve -tp 2", "-tp; `--tensor-parallel-size N`"),
    ("serve -m model.gguf", "-m; MODEL is given without a flag"),
    ("serve --model org/name", "--model; MODEL is given without a flag"),
    ("serve -hf org/name:Q4_K_M", "-hf; nothing is downloaded"),
    ("serve -np 4", "-np; `--max-num-seqs N`"),
    ("serve --enable-auto-tool-choice", "--tool-emulation"),
    ("serve org/name --served-model-name a b", "(b); repeat the flag before each value"),
    ("serve org/name b", "(b) (see smoe serve --help)"),
    ("run -c 4096", "-c; `--max-model-len N`"),
    ("run --temp 0.7", "--temperature) (see"),
    ("run --mlock", "No such option: --mlock (see"),
    ("plan --ctx-size 4096", "--ctx-size; `--max-model-len N`"),
    ("chat -m name", "No such option: -m (see smoe chat --help)"),
    ("list", "'list'; `smoe models`"),
    ("pull mixtral", "'pull'; nothing is downloaded"),
    ("bench list", "No such command 'list'. (see smoe bench --help)"),
    ("serve --gpu-memory-utilization 0.9", "--kv-cache-memory-bytes"),
    ("serve --mlock", "--weights-memory lock"),
    ("serve --jinja", "without a flag"),
    ("chat --jinja", "No such option: --jinja (see smoe chat --help)"),
    ("serve --quantization awq", "should be none, lossless, int8, int4 or fp8; a checkpoint in awq is served as it is"),
    ("serve --dtype half", "should be auto, float32 or bfloat16; a checkpoint in float16 is computed in bfloat16"),
    ("serve --kv-cache-dtype fp8", "should be auto, bf16 or int8; int8 has about as many bytes"),
    ("serve --max-model-len 4g", "should be a whole number, such as 32768, 32k (32,000) or 32K (32,768)"),
    ("plan --memory 80", "80GiB"),
    ("plan --memory lots", "--memory"),
    ("plan --memory 0", "--memory"),
    ("plan ./nope", "smoe models"),
    ("plan {}/bad", "config.json"),
    ("models --memory 80", "80GiB"),
    ("doctor --prot 1", "--port"),
    ("experts", "--text FILE"),
    ("experts --text {}/none.txt", "none.txt"),
    ("experts --text {}/list.yaml --tokens 1", "--tokens"),
    ("experts --text {}/list.yaml --png {}/none/a.png", "no such folder"),
    ("chat --url ftp://h", "http://127.0.0.1:8000"),
    ("chat --url http://[::1", "http://127.0.0.1:8000"),
    ("chat --url 127.0.0.1:{port}", "smoe run"),
    ("complete hello --url 127.0.0.1:{port}", "smoe serve"),
    ("complete hello there", "there"),
    ("complete hello --max-tokens 0", "at least 1"),
    ("complete hello --max-tokens many", "should be a whole number"),
    ("complete hello --temperature -1", "--temperature"),
    ("complete hello --temperature hot", "--temperature"),
    ("complete hello --schema {}/none.json", "No such file"),
    ("complete hello --schema {}/broken.yaml", "not JSON"),
    ("chat -q hello --url 127.0.0.1:{port}", "smoe run"),
    ("top --url 127.0.0.1:{port}", "smoe serve"),
    ("run --dtype fp16", "float32 or bfloat16"),
    ("run ./nope hello", "smoe models"),
    ("run-batch {}/none.jsonl", "--output"),
    ("run-batch {}/none.jsonl -o {}/out.jsonl --url 127.0.0.1:{port}", "smoe serve"),
    ("bench serve 127.0.0.1:{port}", "smoe serve"),
    ("bench chart {}/none.json --plot {}/a.png", "none.json"),
)  # fmt: skip
INTERNALS = ("Traceback", "Errno", "pydantic", "<class", "Input should", "JSONDecodeError")


def refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command; check its exit code and return its only line."""
    monkeypatch.setattr(sys, "argv", ["smoe", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    output, errors = capsys.readouterr()
    assert (end.value.code, output) == (2, ""), (output, errors)
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    return lines[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    (tmp_path / "unknown.yaml").write_text("max-model-length: 5\n")
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        (tmp_path / "two" / f"{name}.gguf").touch()
    for name in ("bad", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    (tmp_path / "bad" / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return tmp_path


@pytest.mark.parametrize(("arguments", "part"), WRONG, ids=[arguments for arguments, _ in WRONG])
def test_a_wrong_input_is_one_line_with_the_way_out(
    arguments: str, part: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HOME", str(folder / "no-cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    port = str(free_port())
    given = [word.replace("{port}", port).replace("{}", str(folder)) for word in arguments.split()]
    line = refused(given, monkeypatch, capsys)
    assert line.startswith("smoe: ") and part in line, line
    assert not [word for word in INTERNALS if word in line], line


def test_the_table_has_forty_rows() -> None:
    assert len(WRONG) >= 40 and len({arguments for arguments, _ in WRONG}) == len(WRONG)


def test_hints_for_the_flags_of_other_servers_name_flags_that_exist() -> None:
    known = {flag.flag for flag in setting_flags() if flag.name != "model"}  # an argument
    for foreign, hint in FOREIGN_FLAGS.items():
        assert foreign not in known
        assert set(re.findall(r"--[a-z-]+", hint)) <= known, hint


def test_hints_for_the_commands_of_other_programs_name_commands_that_exist() -> None:
    known = typer.main.get_command(app).commands.keys()  # type: ignore[attr-defined]
    for foreign, hint in FOREIGN_COMMANDS.items():
        assert foreign not in known
        assert set(re.findall(r"`smoe ([a-z][a-z-]*)", hint)) <= known, hint
