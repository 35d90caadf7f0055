"""The list of bugs of `python -m tests.triton.mutants` fits the kernels: it is run by hand, because it takes long."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import model.ops.triton
from tests.support.paths import ROOT
from tests.triton.mutants.__main__ import main
from tests.triton.mutants.edits import MUTANTS
from tests.triton.mutants.loaded_kernels import change
from tests.triton.mutants.mutant import KERNELS, Mutant


def test_every_bug_changes_the_source_as_it_is_now() -> None:
    for mutant in MUTANTS:
        compile(mutant.source(), mutant.file, "exec")
        assert all((ROOT / "tests" / "triton" / test).exists() for test in mutant.tests)
    assert len({(mutant.file, mutant.old, mutant.new, mutant.tests) for mutant in MUTANTS}) == len(MUTANTS)


def test_every_bug_is_in_a_function_or_a_constant() -> None:
    """Other statements would stay as they are (tests/triton/mutants/loaded_kernels.py)."""
    trees = {file: ast.parse((KERNELS / f"{file}.py").read_text()) for file in {mutant.file for mutant in MUTANTS}}
    for mutant in MUTANTS:
        before, _, _ = (KERNELS / f"{mutant.file}.py").read_text().partition(mutant.old.strip())
        first = before.count("\n") + 1
        last = first + mutant.old.strip().count("\n")
        [node] = [node for node in trees[mutant.file].body if node.lineno <= last and first <= (node.end_lineno or 0)]
        assert isinstance(node, ast.FunctionDef | ast.Assign) and last <= (node.end_lineno or 0), mutant.text


MODULE = """
import triton
import triton.language as tl

FACTOR = tl.constexpr(2.0)

def size():
    return 4

@triton.jit
def scaled(value):
    return value * FACTOR

@triton.jit
def scale_kernel(x, BLOCK: tl.constexpr):
    place = x + tl.arange(0, BLOCK)
    tl.store(place, scaled(tl.load(place)))
"""


@pytest.mark.parametrize(
    ("old", "new", "numbers"),
    [
        ("2.0", "3.0", [3, 3, 3, 3]),
        ("return 4", "return 2", [2, 2, 1, 1]),
        ("value * F", "1.0 + value * F", [3, 3, 3, 3]),
    ],
    ids=["constant", "function", "kernel"],
)
def test_a_change_is_seen_by_those_that_have_imported_what_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, numbers: list[int]
) -> None:
    (tmp_path / "doubling.py").write_text(MODULE)
    (tmp_path / "changed.py").write_text(MODULE.replace(old, new))
    monkeypatch.syspath_prepend(tmp_path)
    size, kernel = (getattr(importlib.import_module("doubling"), name) for name in ("size", "scale_kernel"))
    for expected in ([2, 2, 2, 2], numbers):
        x = torch.ones(4)
        kernel[1,](x, BLOCK=size())
        assert x.tolist() == expected
        change("doubling", tmp_path / "changed.py")
    del sys.modules["doubling"]


def test_every_kernel_has_at_least_three_bugs() -> None:
    modules = [importlib.import_module(found.name) for found in _modules()]
    kernels = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    counts = Counter(mutant.kernel for mutant in MUTANTS)
    assert len(kernels) >= 13
    assert not {kernel for kernel in kernels if counts[kernel] < 3}


def _modules() -> Any:
    return pkgutil.walk_packages(model.ops.triton.__path__, "model.ops.triton.")


def test_a_bug_that_changes_nothing_survives_and_one_that_does_is_noticed() -> None:
    """The tests of launches are the fastest."""
    program = """
from tests.triton.mutants.__main__ import import_kernels_and_tests, outcome
from tests.triton.mutants.mutant import Mutant
tests = ("test_launch.py",)
mutants = [
    Mutant("", "launch", "def blocks(", "def  blocks(", tests),
    Mutant("", "launch", "return -(-size // block)", "return size // block", tests),
]
import_kernels_and_tests(mutants)
print(*map(outcome, mutants))
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
