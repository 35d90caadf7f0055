"""`python -m tests.triton_compiled.estimate`: what the machine code says about a decode step on an H100. An ESTIMATE.

For each matrix kernel of an fp8 layer: instructions per weight, bytes per copy, programs, and the share of the memory's
bandwidth that issuing these instructions and filling the multiprocessors allows. No GPU is needed and none is measured:
latencies, tails and caches are not in it. Prints a table in Markdown.
"""

import sys
from dataclasses import dataclass

import torch

from model.bench.kernels import distinct_experts
from model.ops.triton.ops import TritonOps
from tests.triton_compiled.layer import CONFIG, run_layer
from tests.triton_compiled.machine_code import MachineCode
from tests.triton_compiled.recording import Launched, LaunchRecorder, compile_for

# NVIDIA H100 SXM: data sheet, and CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"
MULTIPROCESSORS, CLOCK_HZ, BYTES_PER_S = 132, 1.7e9, 3.35e12
LANES_PER_CLOCK = 128  # instructions of single threads that a multiprocessor issues per clock
REGISTERS, SHARED_BYTES, THREADS = 65536, 227 * 1024, 2048


@dataclass(frozen=True)
class Estimate:
    """One kernel of a layer at one number of rows."""

    kernel: str
    rows: int
    instructions_per_weight: float
    bytes_per_copy: int
    programs: int
    programs_at_once: int
    share: float


def estimate(launched: Launched, code: MachineCode, programs: int, rows: int) -> Estimate:
    """Bound the share of the bandwidth by the issue of instructions, and by multiprocessors without a program."""
    threads = 32 * launched.options["num_warps"]
    weights_per_thread = launched.options["OUTPUTS"] * launched.options["INPUTS"] / threads
    per_weight = len(code.loop) / weights_per_thread
    resident = min(
        REGISTERS // (threads * max(1, code.registers)), SHARED_BYTES // max(1, code.shared_bytes), THREADS // threads
    )
    at_once = min(programs, resident * MULTIPROCESSORS)
    busy = min(MULTIPROCESSORS, programs) / MULTIPROCESSORS
    weights_per_s = LANES_PER_CLOCK * CLOCK_HZ * MULTIPROCESSORS * busy / per_weight
    waves = -(-programs // max(1, at_once))
    filled = programs / (waves * at_once)
    share = min(1.0, weights_per_s / BYTES_PER_S) * filled
    copies = code.count("LDGSTS")
    wide = code.count("LDGSTS.E.BYPASS.128") + code.count("LDGSTS.E.128")
    return Estimate(launched.name, rows, per_weight, 16 if copies == wide else 4, programs, at_once, share)


class GridRecorder(LaunchRecorder):
    """Also keeps how many programs of each variant do work."""

    def __init__(self, num_rows: int) -> None:
        super().__init__(90)
        self.programs: dict[object, int] = {}
        self._rows = num_rows

    def __call__(self, kernel: object, grid: tuple[int, ...], *arguments: object, **options: object) -> None:
        super().__call__(kernel, grid, *arguments, **options)  # type: ignore[arg-type]
        count = 1
        for size in grid:
            count *= size
        name = kernel.__name__  # type: ignore[attr-defined]
        if name in ("gate_up_kernel", "down_kernel"):  # tiles of experts that no row chose return at once
            chosen = distinct_experts(CONFIG.num_experts, CONFIG.experts_per_token, self._rows)
            tiles = self._rows * CONFIG.experts_per_token // int(options["ROWS"]) + CONFIG.num_experts  # type: ignore[call-overload]
            count = round(count * min(1.0, max(chosen, 1) / min(tiles, self._rows * CONFIG.experts_per_token)))
        self.programs.setdefault(list(self.variants)[-1], count)


def estimates(num_rows: int) -> list[Estimate]:
    """Estimate the matrix kernels of a layer with `num_rows` decoding rows."""
    recorder = GridRecorder(num_rows)
    run_layer(TritonOps(torch.bfloat16, "fp8", launch=recorder), num_rows, num_rows, torch.bfloat16)
    return [
        estimate(launched, compile_for(launched, 90), recorder.programs[key], num_rows)
        for key, launched in recorder.variants.items()
        if launched.name in ("gate_up_kernel", "down_kernel", "linear_kernel") and key in recorder.programs
    ]


def main() -> None:
    """Print the table."""
    write = sys.stdout.write
    write("| kernel | rows | instructions per weight | bytes per copy | programs | at once | share (estimate) |\n")
    write("|---|---|---|---|---|---|---|\n")
    for num_rows in (1, 8, 64):
        for e in estimates(num_rows):
            name = e.kernel.removesuffix("_kernel")
            figures = f"{e.instructions_per_weight:.1f} | {e.bytes_per_copy} | {e.programs} | {e.programs_at_once}"
            write(f"| {name} | {e.rows} | {figures} | {e.share:.0%} |\n")


if __name__ == "__main__":
    main()
