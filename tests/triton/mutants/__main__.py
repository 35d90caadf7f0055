"""`python -m tests.triton.mutants [TEXT ...]`: put each bug of the list into its kernel, and run that kernel's tests.

Each bug is a process with Triton's interpreter that gets the changed file in place of the real one. Prints a line per
bug, then the number of survivors: bugs that no test noticed. TEXT selects bugs whose line contains it. The exit code
is 1 if one survived.
"""

import importlib
import importlib.util
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT
from tests.triton.mutants.edits import MUTANTS
from tests.triton.mutants.mutant import Mutant

HANG_S = 600.0  # a bug may loop for ever; its tests take less than a minute on an idle core
OUTCOMES = {0: "survived", 1: "failed", None: "hangs"}  # by exit code of pytest
NOTICED = ("failed", "hangs", "crashed")
SHARED_MODULES = ("torch", "triton", "numpy", "pytest", "hypothesis")  # imported once, for all processes


class ReplacedModule(MetaPathFinder):
    """Finds one module in another file."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(fullname, self._path) if fullname == self._name else None


def import_shared_modules() -> None:
    """Import what all processes need. The kernels themselves must not be imported yet."""
    os.environ["TRITON_INTERPRET"] = "1"
    for name in SHARED_MODULES:
        importlib.import_module(name)
    assert not [name for name in sys.modules if name.startswith("model.")]


def outcome(mutant: Mutant) -> str:
    """Run a mutant's tests in a process. Returns "survived", "failed", "hangs", "crashed", or what else happened."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{mutant.file}.py"
        path.write_text(mutant.source())
        process = multiprocessing.get_context("fork").Process(target=_run_tests, args=(mutant, path))
        process.start()
        process.join(HANG_S)
        code = process.exitcode
        process.kill()
        process.join()
    if code is not None and code < 0:
        return "crashed"
    return OUTCOMES.get(code, f"BROKEN: pytest ended with {code}")


def _run_tests(mutant: Mutant, path: Path) -> None:
    """Run the tests silently and exit with pytest's code."""
    import pytest

    sys.meta_path.insert(0, ReplacedModule(mutant.module, path))
    with open(os.devnull, "w") as nowhere:
        for descriptor in (1, 2):
            os.dup2(nowhere.fileno(), descriptor)
    files = [str(ROOT / "tests" / "triton" / test) for test in mutant.tests]
    os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files])))


def main(arguments: Sequence[str]) -> int:
    """Run the mutants whose lines contain the given texts."""
    survivors = 0
    for mutant in MUTANTS:
        if not all(argument in f"{mutant.file} {mutant.text}" for argument in arguments):
            continue
        found = outcome(mutant)
        sys.stdout.write(f"{found:<10} {mutant.text}\n")
        sys.stdout.flush()
        survivors += found not in NOTICED
    sys.stdout.write(f"{survivors} survivors\n")
    return int(bool(survivors))


if __name__ == "__main__":
    import_shared_modules()
    sys.exit(main(sys.argv[1:]))
