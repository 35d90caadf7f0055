"""engine/garbage_collection.py, and the collections of processes that import torch: none while they import."""

import gc
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from engine.garbage_collection import without_collections
from tests.support.paths import ROOT

COUNTED = """
import gc, runpy, sys
full = []
gc.callbacks.append(lambda phase, details: full.append(1) if details["generation"] == 2 else None)
try:
    runpy.run_module(sys.argv.pop(1), run_name="__main__")
except SystemExit as end:
    print(end.code, len(full), gc.isenabled(), gc.get_freeze_count() > 100_000)
"""


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_modules_are_imported_without_collections_and_left_out_of_later_ones() -> None:
    gc.unfreeze()
    with without_collections():
        assert not gc.isenabled()
        kept: list[int] = []
    assert gc.isenabled() and gc.get_freeze_count() > 0
    assert not any(one is kept for one in gc.get_objects())


def test_collections_go_on_after_an_import_that_failed() -> None:
    with pytest.raises(ImportError), without_collections():
        raise ImportError
    assert gc.isenabled()


# The descriptors of the socket and of shared memory, and the process that started it.
ARGUMENTS = {
    "engine.process": ("{socket}", "{memory}", "{parent}"),
    "engine.rank": ("{socket}", "{memory}", "1", "{parent}"),
    "engine.host_rank": ("{socket}", "{memory}", "{parent}"),
}


@pytest.mark.parametrize("module", ARGUMENTS)
def test_a_process_that_imports_torch_collects_only_later(module: str) -> None:
    ours, theirs = socket.socketpair()
    memory = os.memfd_create("heartbeat")
    os.truncate(memory, 4096)
    with theirs:
        ours.close()  # so that the process ends when it waits for its first message
        places = {"socket": theirs.fileno(), "memory": memory, "parent": os.getpid()}
        command = [sys.executable, "-c", COUNTED, module, *(one.format(**places) for one in ARGUMENTS[module])]
        passed = (theirs.fileno(), memory)
        result = subprocess.run(command, cwd=ROOT, pass_fds=passed, capture_output=True, text=True, check=True)
    os.close(memory)
    assert result.stdout == "0 0 True True\n", result.stderr
