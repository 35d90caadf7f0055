"""On ARM, quantized weights are multiplied to the same bits as on x86: cross-compiled here, and run by qemu."""

import random
from pathlib import Path

import pytest

from model.ops.native.library import LIBRARY
from tests.support.kernels.built import (
    QUICKLY_COMPILED,
    ROUNDED_PRODUCTS,
    Digests,
    build_library,
    build_program,
    digests,
    digests_program,
    is_attention,
    run,
    unequal,
    unequal_to_bfloat16,
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
RANDOM_PRODUCTS = Path(__file__).with_name("random_products.cpp")
FUSED = ("avx2", "avxvnni", "avx512", "avx512vnni")  # sets that widen bfloat16 and fuse multiplication and addition


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("arm"), *CROSS)


@pytest.fixture(scope="module")
def on_arm(library: Path) -> Digests:
    return digests(run([*QEMU, digests_program(library, library.with_name("digests"), CROSS_COMPILER)]))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Digests:
    return digests(run([digests_program(LIBRARY, tmp_path_factory.mktemp("here") / "digests")]))


def test_quantized_products_have_the_same_bits_on_every_instruction_set(on_arm: Digests, here: Digests) -> None:
    assert {isa for isa, _, _ in on_arm} == {"portable", "neon", "neonbf16"}
    assert {isa for isa, _, _ in here} == set(AVAILABLE)
    assert unequal(here, here) == [] and unequal(on_arm, here) == []


def test_lossless_weights_give_the_bits_of_bfloat16(on_arm: Digests, here: Digests) -> None:
    assert unequal_to_bfloat16(on_arm) == [] and unequal_to_bfloat16(here) == []


@pytest.mark.parametrize("isa", [isa for isa in FUSED if isa in AVAILABLE])
def test_neon_adds_in_the_order_and_with_the_roundings_of_x86(isa: str, on_arm: Digests, here: Digests) -> None:
    assert _products(on_arm, "neon") == _products(here, isa)


def test_matrix_products_change_nothing_but_the_roundings_of_bfloat16(on_arm: Digests) -> None:
    """Attention multiplies as `neon` does, and so do products in float32."""
    of_neon, of_matrices = ({key[1:]: on_arm[key] for key in on_arm if key[0] == isa} for isa in ("neon", "neonbf16"))
    names = {name for name, rows in of_neon if of_neon[name, rows] != of_matrices[name, rows]}
    rounded = {"1-1", "expert-1-1", "64-1", "expert-64-1"}
    assert of_neon.keys() == of_matrices.keys() and names == rounded < set(ROUNDED_PRODUCTS)


def test_random_products_have_the_portable_bits_or_those_of_bfdot_in_software(library: Path) -> None:
    """1 to 14 rows, odd sizes, all formats, while the control register asks for the other roundings of bfloat16."""
    options = (str(library), f"-Wl,-rpath,{library.parent}", "-pthread")
    program = build_program([RANDOM_PRODUCTS], library.with_name("random"), *options, compiler=CROSS_COMPILER)
    seed = str(random.getrandbits(63))
    assert run([*QEMU, program, seed]) == "", seed


def _products(found: Digests, isa: str) -> dict[tuple[str, str], str]:
    return {key[1:]: digest for key, digest in found.items() if key[0] == isa and not is_attention(key[1])}
