"""On ARM, quantized weights are multiplied to the same bits as on x86: cross-compiled here, and run by qemu."""

import pytest

from model.ops.native.library import LIBRARY
from tests.support.kernels.built import (
    QUICKLY_COMPILED,
    Digests,
    build_library,
    digests,
    digests_program,
    is_attention,
    run,
    unequal,
)
from tests.support.kernels.native_cases import ISAS as AVAILABLE

pytestmark = pytest.mark.arm

CROSS_COMPILER = "aarch64-linux-gnu-g++"
QEMU = ("qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu")
CROSS = (
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    f"-DCMAKE_CXX_COMPILER={CROSS_COMPILER}",
    *QUICKLY_COMPILED,
)
FUSED = ("avx2", "avxvnni", "avx512", "avx512vnni")  # sets that widen bfloat16 and fuse multiplication and addition


@pytest.fixture(scope="module")
def on_arm(tmp_path_factory: pytest.TempPathFactory) -> Digests:
    library = build_library(tmp_path_factory.mktemp("arm"), *CROSS)
    return digests(run([*QEMU, digests_program(library, library.with_name("digests"), CROSS_COMPILER)]))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Digests:
    return digests(run([digests_program(LIBRARY, tmp_path_factory.mktemp("here") / "digests")]))


def test_quantized_products_have_the_same_bits_on_every_instruction_set(on_arm: Digests, here: Digests) -> None:
    assert {isa for isa, _, _ in on_arm} == {"portable", "neon"} and {isa for isa, _, _ in here} == set(AVAILABLE)
    assert unequal(here, here) == [] and unequal(on_arm, here) == []


@pytest.mark.parametrize("isa", [isa for isa in FUSED if isa in AVAILABLE])
def test_neon_adds_in_the_order_and_with_the_roundings_of_x86(isa: str, on_arm: Digests, here: Digests) -> None:
    assert _products(on_arm, "neon") == _products(here, isa)


def _products(found: Digests, isa: str) -> dict[tuple[str, str], str]:
    return {key[1:]: digest for key, digest in found.items() if key[0] == isa and not is_attention(key[1])}
