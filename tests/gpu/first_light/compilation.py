"""Stage compile: every kernel variant for this GPU, in parallel processes, into Triton's cache."""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from tests.gpu.first_light.result import Options, Row
from tests.triton_compiled.layer import served_variants
from tests.triton_compiled.machine_code import read_machine_code
from tests.triton_compiled.recording import compile_for


def compile_all(options: Options) -> list[Row]:
    """Compile the served variants; report registers, spills and the time of each kernel."""
    major, minor = torch.cuda.get_device_capability() if options.device == "cuda" else (9, 0)
    arch = 10 * major + minor
    names = sorted(served_variants(arch))[: 2 if options.tiny else None]
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), get_context("spawn")) as pool:
        return list(pool.map(_compile, names, [arch] * len(names)))


def _compile(name: str, arch: int) -> Row:
    start = time.monotonic()
    [code] = read_machine_code([compile_for(served_variants(arch)[name], arch)], arch)
    seconds = time.monotonic() - start
    return {
        "case": name[:90],
        "registers": code.registers,
        "spills": code.spills,
        "seconds": seconds,
        "ok": not code.spills,
    }
