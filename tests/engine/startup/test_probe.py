"""The probe reports this machine, with or without the native library."""

import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch

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


def test_the_free_memory_of_each_gpu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def mem_get_info(index: int) -> tuple[int, int]:
        if index:
            raise torch.OutOfMemoryError("CUDA error: out of memory")
        return 70 << 30, 80 << 30

    for name, value in {"device_count": lambda: 2, "get_device_name": "GPU {}".format}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    found = probe()
    assert (found.gpus, found.gpu_free_bytes) == (["GPU 0", "GPU 1"], [70 << 30, None])


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_triton_needs_a_compiler_and_a_header(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: str) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/cc" if name == compiler else None)
    assert module.launcher_error() is None


@pytest.mark.parametrize("variable", ["TRITON_CACHE_DIR", "TRITON_HOME"])
def test_a_directory_that_triton_cannot_write_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "new" / "folder"))
    assert module.cache_error() is None
    (tmp_path / "file").touch()  # root may write everywhere else
    monkeypatch.setenv(variable, str(tmp_path / "file"))
    assert str(module.cache_error()).startswith(f"{tmp_path / 'file'}")


def test_a_directory_that_may_not_be_looked_at_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in another user's home, where Path.exists() raises PermissionError."""
    private, stat = tmp_path / "private", os.stat
    private.mkdir()

    def stat_of_others(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(f"{private}/"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(private / "triton" / "cache"))
    monkeypatch.setattr(os, "stat", stat_of_others)
    monkeypatch.setattr(os, "access", lambda path, mode: path != private)
    assert module.cache_error() == f"{private / 'triton' / 'cache'} cannot be written"


def test_what_triton_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/cc")
    assert "Python.h" in str(module.launcher_error())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "gcc" in str(module.launcher_error())
