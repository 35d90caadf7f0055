"""The library is loaded only if it fits, and its signatures cover the header."""

import re
from pathlib import Path

import pytest

from model.ops.native import library
from model.ops.native.library import ISAS, NativeLibrary, NativeOutdatedError, NativeUnavailableError
from model.ops.native.ops import NativeOps
from tests.support.kernels.native_cases import LIBRARY
from tests.support.paths import ROOT


def test_every_function_of_the_header_has_a_signature_with_as_many_arguments() -> None:
    header = (ROOT / "model" / "native" / "smoe_native.h").read_text()
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    declared = {
        name: 0 if arguments.strip() == "void" else arguments.count(",") + 1
        for name, arguments in re.findall(r"SMOE_API [\w* ]+?\b(smoe_\w+)\(([^)]*)\);", header)
    }
    assert {name: len(arguments) for name, (_, arguments) in library._SIGNATURES.items()} == declared


def test_a_missing_library_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(NativeUnavailableError, match="was not built"):
        NativeLibrary(tmp_path / "none.so")


def test_a_file_that_is_no_library_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("text")
    with pytest.raises(NativeUnavailableError, match="cannot load the CPU library"):
        NativeLibrary(tmp_path / "text.so")


def test_a_library_of_another_version_is_outdated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "ABI_VERSION", library.ABI_VERSION + 1)
    with pytest.raises(NativeOutdatedError, match="install smoe again"):
        NativeLibrary(library.LIBRARY)


def test_instruction_sets_are_in_order_and_the_portable_one_is_always_there() -> None:
    isas = LIBRARY.isas()
    assert isas[0] == "portable" and isas == sorted(isas, key=ISAS.index)


def test_an_instruction_set_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(NativeUnavailableError, match="sse kernels are not available here; there are portable"):
        NativeOps(LIBRARY, 1, "sse")


def test_the_fastest_instruction_set_is_the_last_but_intel_multiplies_bfloat16_faster_without_avx512bf16() -> None:
    isas = LIBRARY.isas()
    cpus = Path("/proc/cpuinfo")
    is_intel = cpus.exists() and "GenuineIntel" in cpus.read_text()
    fastest = isas[-2] if is_intel and isas[-1] == "avx512bf16" else isas[-1]
    assert LIBRARY.fastest_isa() == fastest == NativeOps(LIBRARY, 1).isa
