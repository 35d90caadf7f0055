"""On ARM, quantized weights are multiplied to the same bits as on x86: cross-compiled here, and run by qemu."""

import subprocess
import sys
from pathlib import Path

import pytest

from model.ops.native.library import ISAS, LIBRARY
from tests.support.kernels.native_cases import ISAS as AVAILABLE
from tests.support.paths import ROOT

pytestmark = pytest.mark.arm

NATIVE = ROOT / "model" / "native"
DRIVER = Path(__file__).with_name("product_digests.cpp")
CROSS_COMPILER = "aarch64-linux-gnu-g++"
QEMU = ("qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu")
CROSS = (
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    f"-DCMAKE_CXX_COMPILER={CROSS_COMPILER}",
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_CXX_FLAGS_RELEASE=-O1",  # a fifth of -O3's time
)
FLOATS = {"0-0", "1-1"}  # formats in float32 and bfloat16: their sums are rounded at each step
FUSED = ("avx2", "avxvnni", "avx512", "avx512vnni")  # sets that widen bfloat16 and fuse multiplication and addition

Digests = dict[tuple[str, str, str], str]  # by instruction set, format and number of rows


def digests(output: str) -> Digests:
    lines = [line.split() for line in output.splitlines()]
    return {(ISAS[int(isa)], weights, rows): digest for isa, weights, rows, digest in lines}


@pytest.fixture(scope="module")
def on_arm(tmp_path_factory: pytest.TempPathFactory) -> Digests:
    build = tmp_path_factory.mktemp("arm")
    _run([sys.executable, "-m", "cmake", "-S", str(NATIVE), "-B", str(build), *CROSS])
    _run([sys.executable, "-m", "cmake", "--build", str(build)])
    return digests(_run([*QEMU, _driver(CROSS_COMPILER, next(build.glob("*.so")), build / "driver")]))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Digests:
    return digests(_run([_driver("c++", LIBRARY, tmp_path_factory.mktemp("here") / "driver")]))


def test_quantized_products_have_the_same_bits_on_every_instruction_set(on_arm: Digests, here: Digests) -> None:
    expected = {(weights, rows): digest for (isa, weights, rows), digest in here.items() if isa == "portable"}
    found = here | on_arm
    assert {isa for isa, _, _ in on_arm} == {"portable", "neon"} and {isa for isa, _, _ in here} == set(AVAILABLE)
    different = [key for key, digest in found.items() if key[1] not in FLOATS and digest != expected[key[1:]]]
    assert different == []


@pytest.mark.parametrize("isa", [isa for isa in FUSED if isa in AVAILABLE])
def test_neon_adds_in_the_order_and_with_the_roundings_of_x86(isa: str, on_arm: Digests, here: Digests) -> None:
    of_neon = {key[1:]: digest for key, digest in on_arm.items() if key[0] == "neon"}
    assert of_neon == {key[1:]: digest for key, digest in here.items() if key[0] == isa}


def _driver(compiler: str, library: Path, to: Path) -> str:
    flags = ["-std=gnu++17", "-O1", f"-I{NATIVE}", f"-Wl,-rpath,{library.parent}"]
    _run([compiler, *flags, str(DRIVER), str(library), "-o", str(to), "-pthread"])
    return str(to)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout
