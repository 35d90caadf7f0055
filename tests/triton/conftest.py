"""Fixtures of all kernel tests: the device, one thread, a seed, and memory with fences.

The kernels run under Triton's interpreter on the CPU (TRITON_INTERPRET=1, as in CI), or on a GPU:
`TRITON_INTERPRET=0 pytest tests/triton`. The device is torch's default one, on which tests and helpers create tensors.
"""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder

from tests.support.kernels.fenced_memory import FencedMemory


@pytest.fixture(autouse=True)
def device() -> Iterator[torch.device]:
    """Make the device torch's default one for a test."""
    torch.set_num_threads(1)
    device = torch.device("cpu" if triton.knobs.runtime.interpret else "cuda")
    torch.set_default_device(device)
    torch.manual_seed(0)
    yield device
    torch.set_default_device(None)


@pytest.fixture(autouse=True)
def _language_is_patched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter replace the language's functions once for a launch.

    It does so at each call of a function within a kernel, which finds them replaced and takes a third of all time.
    """
    monkeypatch.setattr(interpreter, "_patch_lang", patched_once(interpreter._patch_lang))


def patched_once(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return `patch` without effect where all that it would patch has been, since the last scope was restored."""
    patched: list[ModuleType] = []

    def patch_unless_done(function: Any) -> Any:
        names = [value for value in function.__globals__.values() if value is tl or value is tl.core]
        if all(name in patched for name in names):
            return interpreter._LangPatchScope()
        scope = patch(function)
        patched.extend(names)
        restore = scope.restore
        scope.restore = lambda: (restore(), patched.clear())
        return scope

    return patch_unless_done


@pytest.fixture(autouse=True)
def fenced_memory(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[FencedMemory]:
    """Fail at reads and writes beyond a tensor; on a GPU such a read gives NaN, and such a write fails the test.

    Outputs that are not written show as NaN.
    """
    with FencedMemory() as memory:
        _check_accesses(memory, monkeypatch)
        yield memory
    memory.check()


def _check_accesses(memory: FencedMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the addresses of all loads and stores that the interpreter makes.

    tl.load and tl.store end in these two methods of it; tests/triton/test_fenced_memory.py would notice others.
    """
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def checked_load(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        _check(memory, pointers.data, mask.data)
        return load(builder, pointers, mask, *rest)

    def checked_store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        _check(memory, pointers.data, mask.data)
        return store(builder, pointers, value, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", checked_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", checked_store)


def _check(memory: FencedMemory, addresses: Any, mask: Any) -> None:
    """`addresses`: array of uint64; `mask`: booleans of the same shape. Elements that it excludes may lie anywhere."""
    if addresses.size and memory.is_inside(int(addresses.min()), int(addresses.max())):
        return  # most are, with what the mask excludes
    used = addresses[mask]
    if used.size:
        memory.check_access(int(used.min()), int(used.max()))
