"""`smoe pack`: a pack that serve takes, a check of it, and one line for each error."""

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from engine.capacity.pack_messages import PackReport
from model.checkpoint.pack.header import WEIGHTS_NAME, read_header
from server.cli import pack as command
from server.cli.doctor import check_model
from server.cli.main import app
from server.settings.sources import load_settings
from tests.support.checkpoints.packs import flip_byte
from tests.support.paths import DEMO


def pack(*arguments: str | Path) -> Result:
    cleared: dict[str, str | None] = {name: None for name in os.environ if name.startswith("SMOE_")}
    return CliRunner().invoke(app, ["pack", *map(str, arguments)], env=cleared)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, packed by the command itself."""
    target = tmp_path_factory.mktemp("packs") / "demo-int8"
    result = pack(DEMO, "-o", target, "--quantization", "int8", "--threads", "1")
    assert (result.exit_code, result.stderr) == (0, "")
    first, serve = result.stdout.splitlines()
    assert first.startswith(f"{target}: ") and " MiB, packed in " in first
    assert serve == f"smoe serve {target}"
    return target


def test_a_pack_is_checked_and_a_flipped_byte_is_named(packed: Path, tmp_path: Path) -> None:
    result = pack("--check", packed)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{packed}: all {len(read_header(packed).tensors)} checksums match\n"
    damaged = shutil.copytree(packed, tmp_path / "damaged")
    flip_byte(damaged / WEIGHTS_NAME, read_header(damaged).tensors["head.0"].start)
    result = pack("--check", damaged)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr == (
        f"smoe: {damaged / WEIGHTS_NAME} is damaged: tensor head.0 has another checksum than its header lists\n"
    )


def test_doctor_and_plan_know_a_pack(packed: Path) -> None:
    checks = list(check_model(load_settings({"model": str(packed)}), 1 << 30))
    assert {check.verdict for check in checks} == {"ok"}
    model = checks[0]
    assert model.detail.startswith("demo-int8: pack, ") and " in int8; " in model.detail
    plan = CliRunner().invoke(app, ["plan", str(packed), "--memory", "1GiB"])
    assert plan.stdout.startswith("demo-int8: pack, 5 layers") and "verdict: fits" in plan.stdout


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        (
            "tokenizer.model",
            None,
            "{0}: no tokenizer (tokenizer.model, tokenizer.model.v*, tokenizer.json or tekken.json)",
        ),
        ("added_tokens.json", '{"<x>": 3072}', "{0}: the tokenizer adds token id 3072, the model's vocabulary has only "
                                               "3072"),
        ("tokenizer_config.json", '{"chat_template": "{% if %}"}', "the chat template is not valid jinja (line 1)"),
        ("generation_config.json", '{"temperature": 3}', "{0}/generation_config.json: temperature must be a number "
                                                         "from 0 to 2"),
    ],
)  # fmt: skip
def test_what_no_server_would_accept_is_refused_before_anything_is_written(
    file: str, content: str | None, line: str, tmp_path: Path
) -> None:
    damaged = shutil.copytree(DEMO, tmp_path / "damaged", ignore=shutil.ignore_patterns("training"))
    (damaged / file).unlink(missing_ok=True)
    if content is not None:
        (damaged / file).write_text(content)
    result = pack(damaged, "-o", tmp_path / "pack")
    assert (result.exit_code, result.stderr) == (2, f"smoe: {line.format(damaged)}\n")
    assert not list(tmp_path.glob("pack*"))


WRONG = {
    "no output": ([DEMO], "give the folder of the new pack: --output DIR, or check a pack: --check"),
    "both": ([DEMO, "--check", "-o", "x"], "--check and --output exclude each other: give one"),
    "no pack": (["--check", DEMO], f"{DEMO} is not a pack; make one with: smoe pack {DEMO} -o DIR"),
    "no model": (["/none", "-o", "x"], "/none: no such file or directory; `smoe models` lists what is on this machine"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_give_one_line(case: str) -> None:
    arguments, message = WRONG[case]
    result = pack(*arguments)
    assert (result.exit_code, result.stderr) == (2, f"smoe: {message}\n")


def test_an_error_of_the_process_is_the_commands_and_so_is_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = {
        "a full disk": [PackReport("weights", 1, 2), PackReport("failed", error="no space")],
        "killed": [PackReport("weights", 1, 2)],
    }
    expected = {"a full disk": "no space", "killed": "the process that packs has ended without a result"}
    for case, sent in reports.items():
        monkeypatch.setattr(command, "_reports", lambda request, sent=sent: iter(sent))
        result = pack(DEMO, "-o", tmp_path / "p")
        assert (result.exit_code, result.stderr) == (2, f"smoe: {expected[case]}\n")
