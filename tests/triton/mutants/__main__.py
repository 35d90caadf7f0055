"""`python -m tests.triton.mutants [TEXT]`: put each bug of the list into its kernel, and run that kernel's tests.

Each bug is a process with Triton's interpreter that gets the changed file in place of the real one. Prints a line per
bug, then the survivors: bugs that no test noticed. TEXT selects bugs whose line contains it. The exit code is 1 if
one survived.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.triton.mutants.edits import MUTANTS
from tests.triton.mutants.mutant import Mutant

HANG_S = 300.0  # a bug may loop for ever; its tests take less than a minute on an idle core
PASSED, FAILED = 0, 1  # exit codes of pytest


class ReplacedModule(MetaPathFinder):
    """Finds one module in another file."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(fullname, self._path) if fullname == self._name else None


def outcome(mutant: Mutant) -> str:
    """Run a mutant's tests. Returns "survived", "failed", "hangs", or what else ended the process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{mutant.file}.py"
        path.write_text(mutant.source())
        command = [sys.executable, "-m", "tests.triton.mutants", "--run", mutant.module, str(path), *mutant.tests]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        try:
            ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=HANG_S, check=False)
        except subprocess.TimeoutExpired:
            return "hangs"
    if ran.returncode < 0:
        return f"crashed by signal {-ran.returncode}"
    return {PASSED: "survived", FAILED: "failed"}.get(ran.returncode, f"BROKEN: pytest ended with {ran.returncode}")


def run_tests(module: str, path: str, tests: Sequence[str]) -> int:
    """Run tests in this process, in which `module` is the file at `path`."""
    sys.meta_path.insert(0, ReplacedModule(module, Path(path)))
    files = [str(ROOT / "tests" / "triton" / test) for test in tests]
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--timeout", str(int(HANG_S)), *files]))


def main(arguments: Sequence[str]) -> int:
    """Run the mutants that contain the given text, or the tests of one."""
    if arguments[:1] == ["--run"]:
        return run_tests(arguments[1], arguments[2], arguments[3:])
    survivors = []
    for mutant in MUTANTS:
        if not all(argument in f"{mutant.file} {mutant.text}" for argument in arguments):
            continue
        found = outcome(mutant)
        sys.stdout.write(f"{found:<10} {mutant.text}\n")
        sys.stdout.flush()
        survivors += [mutant] if found == "survived" or found.startswith("BROKEN") else []
    sys.stdout.write(f"{len(survivors)} survivors\n")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
