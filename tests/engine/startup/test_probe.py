"""The probe reports this machine, with or without the native library."""

import os

import pytest

from engine.startup import probe as module
from engine.startup.probe import probe
from model.ops.native.library import ISAS, NativeUnavailableError


def test_cores_and_instruction_sets_are_those_of_this_process() -> None:
    found = probe()
    assert 1 <= found.num_cores <= len(os.sched_getaffinity(0))
    assert found.isas[0] == "portable" and set(found.isas) <= set(ISAS)
    assert found.native_error is None


def test_without_the_library_the_reason_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> None:
        raise NativeUnavailableError("not built")

    monkeypatch.setattr(module, "NativeLibrary", unavailable)
    found = probe()
    assert (found.isas, found.native_error) == ([], "not built")
