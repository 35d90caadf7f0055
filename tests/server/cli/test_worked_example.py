"""docs/operation/capacity.md: its examples are what the commands print."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli.main import app
from tests.support.checkpoints.header_only import MIXTRAL_8X7B, MIXTRAL_8X22B, save_headers
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "operation" / "capacity.md"
EXAMPLES = re.findall(r"```\n\$ smoe (plan .*?)\n```", PAGE.read_text(), re.DOTALL)
SHAPES = {"Mixtral-8x7B-Instruct-v0.1": MIXTRAL_8X7B, "Mixtral-8x22B-Instruct-v0.1": MIXTRAL_8X22B}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the headers of the models; their weights are holes in files."""
    folder = tmp_path_factory.mktemp("models")
    for name, shape in SHAPES.items():
        save_headers(folder / name, shape)
    return folder


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("example", EXAMPLES, ids=["hosts", "gpu", "cpu"][: len(EXAMPLES)])
def test_an_example_is_what_the_command_prints(example: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, _, printed = re.sub(r"\s*\\\n\s*", " ", example).partition("\n")
    monkeypatch.chdir(models)
    assert CliRunner().invoke(app, shlex.split(command)).stdout.strip() == printed
