"""Builds of the native library and of C++ test programs, and digests of a library's products."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from model.ops.native.library import ISAS, LIBRARY
from tests.support.paths import ROOT

NATIVE = ROOT / "model" / "native"
PRODUCT_DIGESTS = Path(__file__).with_name("product_digests.cpp")
# Options of CMake for a library that is compiled in a third of the time and computes more slowly.
QUICKLY_COMPILED = ("-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1")
# Sums that are rounded at each step, in an order that depends on the instruction set.
ROUNDED_PRODUCTS = ("0-0", "1-1", "64-1", "expert-0-0", "expert-1-1", "expert-64-1")

Digests = dict[tuple[str, str, str], str]  # by instruction set, name and number of rows


def run(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    """Return what a command prints. Raises AssertionError with its output if it fails."""
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout


def build_library(build: Path, *options: str) -> Path:
    """Build the native library in folder `build` with options of CMake; return its path.

    ccache, where it is installed, keeps the objects for the next run.
    """
    cmake = (sys.executable, "-m", "cmake")
    cached = ("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache",) if shutil.which("ccache") else ()
    anywhere = os.environ | {"CCACHE_NOHASHDIR": "1"}  # objects with line numbers serve builds in other folders too
    run([*cmake, "-S", str(NATIVE), "-B", str(build), *cached, *options])
    run([*cmake, "--build", str(build), "-j", str(os.cpu_count())], anywhere)
    return build / LIBRARY.name


def build_program(sources: list[Path], to: Path, *options: str, compiler: str = "c++") -> str:
    """Compile a program against the library's sources; return its path."""
    run([compiler, "-std=gnu++17", "-O1", f"-I{NATIVE}", *map(str, sources), "-o", str(to), *options])
    return str(to)


def digests_program(library: Path, to: Path, compiler: str = "c++") -> str:
    """Compile tests/support/kernels/product_digests.cpp with a library; return the program's path."""
    return build_program([PRODUCT_DIGESTS, library], to, f"-Wl,-rpath,{library.parent}", "-pthread", compiler=compiler)


def digests(output: str) -> Digests:
    """Return the digests that the program printed."""
    lines = [line.split() for line in output.splitlines()]
    return {(ISAS[int(isa)], name, rows): digest for isa, name, rows, digest in lines}


def is_attention(name: str) -> bool:
    return name.startswith("attention-")


def unequal_to_bfloat16(found: Digests) -> list[tuple[str, str, str]]:
    """Return the keys of products with lossless weights whose bits are not those of the same instruction set with
    bfloat16 weights."""
    coded = [key for key in found if key[1].endswith("64-1")]
    assert coded
    return [key for key in coded if found[key] != found[key[0], key[1].replace("64-1", "1-1"), key[2]]]


def unequal(found: Digests, expected: Digests) -> list[tuple[str, str, str]]:
    """Return the keys of `found` whose quantized products differ from the portable ones of `expected`."""
    return [
        (isa, name, rows)
        for (isa, name, rows), digest in found.items()
        if not is_attention(name) and name not in ROUNDED_PRODUCTS and digest != expected["portable", name, rows]
    ]
