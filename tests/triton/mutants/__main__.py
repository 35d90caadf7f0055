"""`python -m tests.triton.mutants [TEXT ...]`: put each bug of the list into its kernel, and run that kernel's tests.

Kernels and tests are imported once, with Triton's interpreter. Each bug is a forked process that changes the kernels
that it has. Prints a line per bug, then the number of survivors: bugs that no test noticed. TEXT selects bugs whose
line contains it. The exit code is 1 if one survived.
"""

import importlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.paths import ROOT
from tests.triton.mutants.edits import MUTANTS
from tests.triton.mutants.mutant import Mutant

HANG_S = 600.0  # a bug may loop for ever; its tests take less than a minute on an idle core
OUTCOMES = {0: "survived", 1: "failed", None: "hangs"}  # by exit code of pytest
NOTICED = ("failed", "hangs", "crashed")


def import_kernels_and_tests(mutants: Sequence[Mutant]) -> None:
    """Import what the mutants' processes share: that takes longer than most of them."""
    os.environ["TRITON_INTERPRET"] = "1"
    for path in sorted({os.path.normpath(f"tests/triton/{test}") for mutant in mutants for test in mutant.tests}):
        importlib.import_module(path.removesuffix(".py").replace("/", "."))
    for module in sorted({mutant.module for mutant in mutants}):
        importlib.import_module(module)


def outcome(mutant: Mutant) -> str:
    """Run a mutant's tests in a process. Returns "survived", "failed", "hangs", "crashed", or what else happened."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.py"
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

    from tests.triton.mutants.loaded_kernels import change

    change(mutant.module, path)
    with open(os.devnull, "w") as nowhere:
        for descriptor in (1, 2):
            os.dup2(nowhere.fileno(), descriptor)
    files = [str(ROOT / "tests" / "triton" / test) for test in mutant.tests]
    os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files])))


def selected(texts: Sequence[str]) -> list[Mutant]:
    """Return the mutants whose lines contain all texts."""
    return [mutant for mutant in MUTANTS if all(text in f"{mutant.file} {mutant.text}" for text in texts)]


def main(texts: Sequence[str]) -> int:
    """Run the mutants whose lines contain the given texts."""
    survivors = 0
    for mutant in selected(texts):
        found = outcome(mutant)
        sys.stdout.write(f"{found:<10} {mutant.text}\n")
        sys.stdout.flush()
        survivors += found not in NOTICED
    sys.stdout.write(f"{survivors} survivors\n")
    return int(bool(survivors))


if __name__ == "__main__":
    import_kernels_and_tests(selected(sys.argv[1:]))
    sys.exit(main(sys.argv[1:]))
