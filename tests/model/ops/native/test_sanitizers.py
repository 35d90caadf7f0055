"""Tests of the native library pass under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
from pathlib import Path

import pytest

from tests.support.kernels.built import build_library, run
from tests.support.kernels.native_cases import ISAS
from tests.support.parallel_pytest import run_parts

NATIVE_TESTS = (
    "native/test_ops.py",
    "native/test_block_formats.py",
    "native/test_lossless.py",
    "reference/test_kv_int8.py",
    "test_quantization.py",
    "native/test_sampling.py",
    "native/test_group.py",
    "native/test_socket_group.py",
    "../test_mixtral_native.py::test_one_call_gives_the_bits_of_separate_ops_over_int8_caches",
)


@pytest.fixture(scope="module")
def sanitized_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Kernels of other instruction sets cannot run here, and would take most of the time to compile.
    tested = f"-DSMOE_SANITIZED_ISAS={';'.join(ISAS)}"
    options = ["-DSMOE_SANITIZE=ON", tested, "-DCMAKE_BUILD_TYPE=None", "-DSKBUILD_STATE=none"]
    if "amx" in ISAS:
        options.append("-DSMOE_EMULATE_AMX=ON")  # what tile instructions read and write is checked in software only
    return build_library(tmp_path_factory.mktemp("sanitized"), *options)


def test_the_native_tests_pass_with_every_access_and_operation_checked(sanitized_library: Path) -> None:
    environment = os.environ | {
        "LD_PRELOAD": " ".join(map(_runtime, ("libasan.so", "libubsan.so"))),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter does not free all memory at exit
        "NATIVE_LIBRARY": str(sanitized_library),
    }
    tests = [f"tests/model/ops/{name}" for name in NATIVE_TESTS]
    run_parts(["-p", "tests.support.kernels.other_library", *tests], environment)


def _runtime(name: str) -> str:
    return run(["c++", f"-print-file-name={name}"]).strip()
