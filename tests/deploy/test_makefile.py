"""`make install`: torch comes first, from the chosen index; if that fails, it matters who chose it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

INDEX = "http://127.0.0.1:9/whl/cpu"
OF_THE_CALLER = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "TORCH_INDEX", "PYTHON"}
# Stands for the interpreter of .venv: it notes the calls of pip, and answers for deploy/torch_index.py.
FAKE_PYTHON = f"""#!/bin/sh
case "$1" in
    deploy/torch_index.py) if [ "$2" = auto ]; then echo {INDEX}; else echo "$2"; fi ;;
    -m) echo "$*" >> calls; case "$*" in *--index-url*) exit "$(cat status)" ;; esac ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the Makefile and an interpreter that installs nothing."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "model" / "native").mkdir(parents=True)
    (tmp_path / "model" / "native" / "CMakeLists.txt").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    (tmp_path / "status").write_text("0")
    return tmp_path


def install(clone: Path, *arguments: str) -> tuple[int, list[str], str]:
    """Return the exit code of make, the calls of pip, and what was printed.

    Variables of a make around the tests are unset.
    """
    environment = {name: value for name, value in os.environ.items() if name not in OF_THE_CALLER}
    command = ["make", "install", *arguments]
    ran = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    calls = clone / "calls"
    return ran.returncode, calls.read_text().splitlines() if calls.exists() else [], ran.stdout


def test_torch_is_installed_first_and_from_the_chosen_index(clone: Path) -> None:
    code, [torch, smoe], _ = install(clone)
    assert code == 0
    assert torch.endswith(f"install --index-url {INDEX} torch>=2.11") and smoe.endswith("install --editable .")


def test_without_an_index_pip_takes_its_own(clone: Path) -> None:
    code, calls, _ = install(clone, "TORCH_INDEX=")
    assert code == 0 and [call for call in calls if "--index-url" in call] == [] and len(calls) == 1


def test_an_index_that_was_chosen_for_the_user_and_fails_leaves_pips_own_with_a_line(clone: Path) -> None:
    (clone / "status").write_text("1")
    code, calls, printed = install(clone)
    assert code == 0 and calls[-1].endswith("install --editable .")
    assert "torch comes from the index that pip is configured for" in printed


def test_an_index_that_the_user_named_and_that_fails_ends_the_installation(clone: Path) -> None:
    (clone / "status").write_text("1")
    code, calls, _ = install(clone, "TORCH_INDEX=http://mirror")
    assert code != 0 and len(calls) == 1
