"""Tests of the native library pass under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.ops.native.library import LIBRARY
from tests.support.kernels.native_cases import ISAS
from tests.support.parallel_pytest import run_parts
from tests.support.paths import ROOT

CMAKE = (sys.executable, "-m", "cmake")
NATIVE_TESTS = (
    "native/test_ops.py",
    "native/test_block_formats.py",
    "reference/test_kv_int8.py",
    "test_quantization.py",
    "native/test_sampling.py",
    "native/test_group.py",
    "native/test_socket_group.py",
    "../test_mixtral_native.py::test_one_call_gives_the_bits_of_separate_ops_over_int8_caches",
)


@pytest.fixture(scope="module")
def sanitized_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("sanitized")
    # Kernels of other instruction sets never run here, and would take as long to compile.
    tested = f"-DSMOE_SANITIZED_ISAS={';'.join(ISAS)}"
    options = ("-DSMOE_SANITIZE=ON", tested, "-DCMAKE_BUILD_TYPE=None", "-DSKBUILD_STATE=none")
    _run([*CMAKE, "-S", str(ROOT / "model" / "native"), "-B", str(build), *options])
    _run([*CMAKE, "--build", str(build), "-j", str(os.cpu_count())])
    return build / LIBRARY.name


def test_the_native_tests_pass_with_every_access_and_operation_checked(sanitized_library: Path) -> None:
    environment = os.environ | {
        "LD_PRELOAD": " ".join(map(_runtime, ("libasan.so", "libubsan.so"))),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter does not free all memory at exit
        "SANITIZED_LIBRARY": str(sanitized_library),
    }
    tests = [f"tests/model/ops/{name}" for name in NATIVE_TESTS]
    run_parts(["-p", "tests.support.kernels.sanitized_library", *tests], environment)


def _runtime(name: str) -> str:
    return _run(["c++", f"-print-file-name={name}"]).strip()


def _run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout
