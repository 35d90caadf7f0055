"""The probe reports this machine, with or without the native library."""

import os
import shutil
import sysconfig
from pathlib import Path

import pytest

from engine.startup import probe as module
from engine.startup.probe import probe
from model.ops.native.library import ISAS, NativeLibrary, NativeUnavailableError


def test_cores_and_instruction_sets_are_those_of_this_process() -> None:
    found = probe()
    assert 1 <= found.num_cores <= len(os.sched_getaffinity(0))
    assert found.isas[0] == "portable" and set(found.isas) <= set(ISAS)
    assert found.fastest_isa == NativeLibrary().fastest_isa() and found.fastest_isa in found.isas
    assert found.native_error is None


def test_without_the_library_the_reason_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> None:
        raise NativeUnavailableError("not built")

    monkeypatch.setattr(module, "NativeLibrary", unavailable)
    found = probe()
    assert (found.isas, found.fastest_isa, found.native_error) == ([], None, "not built")


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_triton_needs_a_compiler_and_a_header(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: str) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/cc" if name == compiler else None)
    assert module.launcher_error() is None


def test_what_triton_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/cc")
    assert "Python.h" in str(module.launcher_error())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "gcc" in str(module.launcher_error())
