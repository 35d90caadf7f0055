"""The list of bugs of `python -m tests.triton.mutants` fits the kernels: it is run by hand, because it takes long."""

import importlib
import pkgutil
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

import model.ops.triton
from tests.support.paths import ROOT
from tests.triton.mutants.__main__ import main
from tests.triton.mutants.edits import MUTANTS
from tests.triton.mutants.mutant import Mutant


def test_every_bug_changes_the_source_as_it_is_now() -> None:
    for mutant in MUTANTS:
        compile(mutant.source(), mutant.file, "exec")
        assert all((ROOT / "tests" / "triton" / test).exists() for test in mutant.tests)
    assert len({(mutant.file, mutant.old, mutant.new, mutant.tests) for mutant in MUTANTS}) == len(MUTANTS)


def test_every_kernel_has_at_least_three_bugs() -> None:
    modules = [importlib.import_module(f"model.ops.triton.{found.name}") for found in _modules()]
    kernels = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    counts = Counter(mutant.kernel for mutant in MUTANTS)
    assert len(kernels) >= 13
    assert not {kernel for kernel in kernels if counts[kernel] < 3}


def _modules() -> Any:
    return pkgutil.iter_modules(model.ops.triton.__path__)


def test_a_bug_that_changes_nothing_survives_and_one_that_does_is_noticed() -> None:
    """The tests of launches are the fastest."""
    program = """
from tests.triton.mutants.__main__ import import_shared_modules, outcome
from tests.triton.mutants.mutant import Mutant
import_shared_modules()
tests = ("test_launch.py",)
print(outcome(Mutant("", "launch", "def blocks(", "def  blocks(", tests)))
print(outcome(Mutant("", "launch", "return -(-size // block)", "return size // block", tests)))
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["survived", "failed"], ran.stderr


def test_an_edit_of_text_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="0 times"):
        Mutant("", "launch", "no such text", "", ()).source()


def test_the_exit_code_tells_of_survivors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tests.triton.mutants.__main__.outcome", lambda mutant: "failed")
    assert main(["decode_kernel"]) == 0
    monkeypatch.setattr("tests.triton.mutants.__main__.outcome", lambda mutant: "survived")
    assert main(["decode_kernel", "positions"]) == 1
    assert capsys.readouterr().out.endswith("1 survivors\n")
