"""The AMX kernels keep their promises where AMX's tile instructions are computed in software, on CPUs without them too.

The software itself is compared with the instructions: with a digest of what they computed on an Intel Xeon, and on
fresh random tiles where this CPU has them.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.kernels.built import (
    LIBRARY,
    NATIVE,
    QUICKLY_COMPILED,
    Digests,
    build_library,
    build_program,
    digests,
    digests_program,
    run,
    unequal,
)
from tests.support.kernels.native_cases import ISAS

pytestmark = pytest.mark.avx512_bf16

TILE_CASES = [Path(__file__).with_name("tile_cases.cpp"), NATIVE / "runtime" / "isa.cpp"]
TILES = ("-mavx512f", "-mavx512bw", "-mamx-tile", "-mamx-bf16", "-mamx-int8")
EMULATED = ("-DSMOE_EMULATE_AMX", "-include", str(NATIVE / "simd" / "emulated_amx.h"))
# SHA-256 of what `tile_cases cases 1` printed where tile registers computed it, 2026-11-28
ON_A_XEON = "b62390ee88f3af4622e59cdf00a6c352065b4feafa75a93511002a35418bbf62"
NUM_MISUSES = 11
OTHER_LIBRARY = "tests.support.kernels.other_library"
BIT_TESTS = [
    f"tests/model/ops/native/{name}"
    for name in ("test_ops.py", "test_same_bits.py", "test_lossless.py", "test_block_formats.py")
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Programs that use tiles: with the instructions in software and, if this CPU has them, with its own."""
    folder = tmp_path_factory.mktemp("tiles")
    emulated = build_program(TILE_CASES, folder / "emulated", *TILES, *EMULATED)
    return [emulated] + ([build_program(TILE_CASES, folder / "own", *TILES)] if "amx" in ISAS else [])


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ("-DSMOE_EMULATE_AMX=ON", "-DSMOE_ONLY_ISA=amx")
    return build_library(tmp_path_factory.mktemp("emulated"), *QUICKLY_COMPILED, *options)


@pytest.fixture(scope="module")
def products(library: Path) -> Digests:
    return digests(run([digests_program(library, library.with_name("digests"))]))


@pytest.fixture(scope="module")
def products_here(tmp_path_factory: pytest.TempPathFactory) -> Digests:
    return digests(run([digests_program(LIBRARY, tmp_path_factory.mktemp("here") / "digests")]))


def test_tiles_have_the_bits_that_a_xeon_gave(programs: list[str]) -> None:
    """All 8 instructions, any shapes and strides, with infinities, NaN, subnormal numbers and sums that overflow."""
    for program in programs:
        assert hashlib.sha256(run([program, "cases", "1"]).encode()).hexdigest() == ON_A_XEON, program


@pytest.mark.amx
def test_random_tiles_have_the_bits_of_this_cpus_instructions(programs: list[str]) -> None:
    seed = str(random.getrandbits(63))
    emulated, own = (run([program, "cases", seed]).splitlines() for program in programs)
    assert [pair for pair in zip(emulated, own, strict=True) if pair[0] != pair[1]] == [], seed


@pytest.mark.parametrize("misuse", range(NUM_MISUSES))
def test_a_use_that_the_instructions_refuse_ends_the_process(programs: list[str], misuse: int) -> None:
    """Unknown palettes, shapes that do not fit into registers or to each other, registers without a shape."""
    for program in programs:
        done = subprocess.run([program, "misuse", str(misuse)], check=False)
        assert done.returncode in (-signal.SIGILL, -signal.SIGSEGV), program


def test_a_use_that_fits_is_not_refused(programs: list[str]) -> None:
    for program in programs:
        run([program, "misuse", str(NUM_MISUSES)])


def test_quantized_products_have_the_bits_of_every_instruction_set(products: Digests, products_here: Digests) -> None:
    assert {isa for isa, _, _ in products} == {"amx"} and {isa for isa, _, _ in products_here} == set(ISAS)
    assert unequal(products, products_here) == [] and unequal(products_here, products_here) == []


@pytest.mark.amx
def test_products_have_the_bits_of_this_cpus_tiles(products: Digests, products_here: Digests) -> None:
    assert {key: digest for key, digest in products_here.items() if key[0] == "amx"} == products


def test_the_bit_tests_pass_on_emulated_tiles(library: Path) -> None:
    """All in bfloat16, as float32 uses no tiles except for quantized weights, and block formats in any batch."""
    chosen = "bfloat16 or several_tiles or in_any_batch"
    pytest_command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", OTHER_LIBRARY]
    run([*pytest_command, *BIT_TESTS, "-k", chosen], os.environ | {"NATIVE_LIBRARY": str(library)})
