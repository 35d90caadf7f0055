"""`python -m tests.triton_compiled.estimate`: a decode step on an H100 by arithmetic. An ESTIMATE; no GPU is needed.

Every launch of a step is recorded and compiled. A kernel's time follows from the bytes that it reads, the instructions
of its loops, its programs and the multiprocessors; constants below stand for what machine code does not say. The share
of a step is the time in which a copy would read its weights and KV cache, divided by the estimated time. Prints tables
in Markdown. Nothing here was measured.
"""

import sys
from dataclasses import dataclass
from typing import TypeAlias

from model.bench.kernels import distinct_experts
from model.ops.triton.launch import blocks
from model.ops.triton.packed_weights import WeightFormat
from tests.triton_compiled.decode_launches import DecodeStep, Launch, decode_step
from tests.triton_compiled.layer import CONFIG
from tests.triton_compiled.machine_code import MachineCode, read_machine_code
from tests.triton_compiled.recording import compile_for

# NVIDIA H100 SXM: data sheet, and CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"
MULTIPROCESSORS, CLOCK_HZ = 132, 1.7e9
LANES_PER_CLOCK = 128  # instructions of single threads that a multiprocessor issues per clock; half of it in float64
REGISTERS, SHARED_BYTES, THREADS = 65536, 227 * 1024, 2048
# Assumptions
COPY_BYTES_PER_S = 3.0e12  # 90 % of the data sheet's 3.35e12
LATENCY_S = 0.8e-6  # of a read from memory
CACHED_S = 0.2e-6  # of a read from the L2 cache
RAMP_S = 1.5e-6  # first reads and last writes of a large kernel
SMALL_S = 2.0e-6  # a kernel that only reads and writes a few rows
NODE_S = 1.0e-6  # from one kernel of a graph to the next
SERIAL_CLOCKS = 1000  # two products, a maximum and exponentials, one after another: one turn of the attention's loop
PRODUCTS = ("gate_up_kernel", "down_kernel", "linear_kernel")
NUM_LAYERS = 32  # of Mixtral-8x7B
DOUBLES = ("DFMA", "DADD", "DMUL", "DSETP")

Codes: TypeAlias = dict[object, MachineCode]  # by the key of a launch


@dataclass(frozen=True)
class Estimate:
    """One kernel of a step."""

    kernel: str
    rows: int
    programs: int
    at_once: int  # programs that fit the GPU
    read_bytes: float
    seconds: float
    per_weight: float = 0.0  # instructions of the loop
    bytes_per_copy: int = 0

    @property
    def share(self) -> float:
        """Of the copy's bandwidth."""
        return self.read_bytes / COPY_BYTES_PER_S / self.seconds


@dataclass(frozen=True)
class StepEstimate:
    """A decode step of `rows` rows, each with `context` cached positions."""

    rows: int
    context: int
    launches_per_layer: int
    layer_s: float
    sampler_s: float
    step_s: float
    read_bytes: float

    @property
    def share(self) -> float:
        return self.read_bytes / COPY_BYTES_PER_S / self.step_s


def resident_programs(launch: Launch, code: MachineCode) -> int:
    """Return how many programs fit a multiprocessor at once."""
    threads = 32 * launch.options["num_warps"]
    by_shared = SHARED_BYTES // (code.shared_bytes + 1024)
    return max(1, min(REGISTERS // (threads * max(1, code.registers)), by_shared, THREADS // threads))


def estimate_product(launch: Launch, code: MachineCode, rows: int, reached: float = 1.0) -> Estimate:
    """Estimate a matrix kernel: waves of programs, at the speed of memory, of issue, or of copies in flight."""
    options = launch.options
    programs, read_bytes = _programs_and_bytes(launch, rows)
    tile_bytes = options["OUTPUTS"] * options["INPUTS"] * launch.bytes_per_weight
    per_weight = len(code.loop) * 32 * options["num_warps"] / (options["OUTPUTS"] * options["INPUTS"])
    at_once = min(programs, resident_programs(launch, code) * MULTIPROCESSORS)

    def bytes_per_s(count: int) -> float:
        issued = min(MULTIPROCESSORS, count) * LANES_PER_CLOCK * CLOCK_HZ / per_weight * launch.bytes_per_weight
        in_flight = count * (options["num_stages"] - 1) * tile_bytes / LATENCY_S
        return min(reached * COPY_BYTES_PER_S, issued, in_flight)

    waves, rest = divmod(programs, at_once)
    each = read_bytes / programs
    seconds = RAMP_S + waves * at_once * each / bytes_per_s(at_once)
    seconds += rest * each / bytes_per_s(rest) if rest else 0.0
    copies, wide = code.count("LDGSTS"), code.count("LDGSTS.E.BYPASS.128") + code.count("LDGSTS.E.128")
    return Estimate(launch.name, rows, programs, at_once, read_bytes, seconds, per_weight, 16 if copies == wide else 4)


def _programs_and_bytes(launch: Launch, rows: int) -> tuple[int, float]:
    """Return how many programs work, and the bytes of weights that they read. Tiles of experts without rows return at
    once; the rows of an expert fill one tile."""
    if launch.name == "linear_kernel":
        num_outputs, dim = launch.arguments[5], launch.arguments[6]
        return launch.num_programs, float(num_outputs * dim * launch.bytes_per_weight)
    chosen = distinct_experts(CONFIG.num_experts, CONFIG.experts_per_token, rows)
    is_up = launch.name == "gate_up_kernel"
    outputs, inputs = (2 * CONFIG.hidden_dim, CONFIG.dim) if is_up else (CONFIG.dim, CONFIG.hidden_dim)
    splits = launch.grid[1] if len(launch.grid) > 1 else 1
    programs = round(chosen * blocks(outputs, launch.options["OUTPUTS"]) * splits)
    return programs, chosen * outputs * inputs * launch.bytes_per_weight


def estimate_attention(launch: Launch, code: MachineCode, rows: int, context: int, reached: float = 1.0) -> Estimate:
    """Estimate the decoding kernel: memory, the issue of its loop's instructions, or its chain of dependent ones."""
    options = launch.options
    turn_bytes = 2 * options["KEYS"] * options["ROW"] * launch.bytes_per_weight
    read_bytes = float(rows * CONFIG.num_kv_heads * context * 2 * options["ROW"] * launch.bytes_per_weight)
    num_splits = max(1, min(launch.grid[2], blocks(context, options["SPAN"])))
    programs = rows * CONFIG.num_kv_heads * num_splits
    resident = resident_programs(launch, code)
    per_multiprocessor = min(resident, blocks(programs, MULTIPROCESSORS))
    issue_clocks = len(code.loop) * options["num_warps"] * 32 / LANES_PER_CLOCK
    clocks = max(issue_clocks, SERIAL_CLOCKS / per_multiprocessor)
    rate = min(reached * COPY_BYTES_PER_S, min(MULTIPROCESSORS, programs) * turn_bytes / clocks * CLOCK_HZ)
    at_once = min(programs, resident * MULTIPROCESSORS)
    return Estimate(launch.name, rows, programs, at_once, read_bytes, RAMP_S + read_bytes / rate)


def estimate_sampler(launch: Launch, code: MachineCode, rows: int) -> float:
    """Return the time of the drawing kernel with top_p, if one cut leaves few candidates and a draw needs half of the
    vocabulary: each pass over it is the loop of the kernel in the order of the code."""
    turns = blocks(CONFIG.vocab_size, launch.options["BLOCK"])
    warps_per_lane = launch.options["num_warps"] * 32 / LANES_PER_CLOCK

    def seconds(loop: tuple[str, ...], count: float, latency_s: float) -> float:
        slots = len(loop) + sum(text.startswith(DOUBLES) for text in loop)
        return count * (slots * warps_per_lane / CLOCK_HZ + latency_s)

    passes = [loop for loop in code.loops if any(text.startswith("LDG") for text in loop)]
    searches = [loop for loop in code.loops if loop not in passes and any(text.startswith("DADD") for text in loop)]
    by_cost = sorted(passes, key=len)
    largest, draw = by_cost[0], by_cost[-1]
    masses = [loop for loop in passes if any(text.startswith("DFMA") for text in loop) and loop is not draw]
    gathers = [loop for loop in passes if loop not in masses and loop not in (largest, draw)]
    whole = (largest, max(masses, key=len), max(gathers, key=len))
    total = sum(seconds(loop, turns, CACHED_S) for loop in whole) + seconds(draw, turns / 2, CACHED_S)
    return RAMP_S + (total + seconds(max(searches, key=len), 32, 0.1e-6)) * blocks(rows, MULTIPROCESSORS)


def estimate_step(
    step: DecodeStep, codes: Codes, context: int, reached: float = 1.0
) -> tuple[StepEstimate, list[Estimate]]:
    """Add up a step: large kernels one by one, the others as small ones, and the way between them.

    Kernels that read weights or KV cache reach at most `reached` of a copy's bandwidth.
    """
    found: list[Estimate] = []
    for launch in step.layer:
        if launch.name in PRODUCTS:
            found.append(estimate_product(launch, codes[launch.key], step.rows, reached))
        elif launch.name == "decode_kernel":
            found.append(estimate_attention(launch, codes[launch.key], step.rows, context, reached))
    num_launches = len(step.layer) + step.torch_per_layer
    small = num_launches - len(found)
    layer_s = sum(e.seconds for e in found) + small * SMALL_S + num_launches * NODE_S
    head = estimate_product(step.head, codes[step.head.key], step.rows, reached)
    sampler_s = estimate_sampler(step.draw, codes[step.draw.key], step.rows)
    step_s = NUM_LAYERS * layer_s + head.seconds + sampler_s + step.other_launches * (SMALL_S + NODE_S)
    read_bytes = NUM_LAYERS * sum(e.read_bytes for e in found) + head.read_bytes
    return StepEstimate(step.rows, context, num_launches, layer_s, sampler_s, step_s, read_bytes), found


def compiled_step(weight_format: WeightFormat, num_rows: int) -> tuple[DecodeStep, Codes]:
    """Record a decode step, and compile the kernels that are estimated one by one."""
    step = decode_step(weight_format, num_rows)
    names = (*PRODUCTS, "decode_kernel", "draw_kernel")
    launches = {launch.key: launch for launch in (*step.layer, step.head, step.draw) if launch.name in names}
    codes = read_machine_code([compile_for(launch.launched, 90) for launch in launches.values()], 90)
    return step, dict(zip(launches, codes, strict=True))


def main() -> None:
    """Print a table of kernels and a table of steps."""
    kernels = ["| kernel | rows | instructions per weight | bytes per copy | programs | at once | us | share |"]
    steps = ["| rows | context | launches a layer | layer, us | sampler, us | step, ms | share | share at 90 % |"]
    for lines in (kernels, steps):
        lines.append("|---" * 8 + "|")
    for num_rows in (1, 8, 64):
        step, codes = compiled_step("fp8", num_rows)
        kernels += [_kernel_line(e) for e in estimate_step(step, codes, 1024)[1]]
        for context in (256, 1024):
            best, careful = (estimate_step(step, codes, context, reached)[0] for reached in (1.0, 0.9))
            times = f"{1e6 * best.layer_s:.0f} | {1e6 * best.sampler_s:.0f} | {1e3 * best.step_s:.2f}"
            shares = f"{best.share:.0%} | {careful.share:.0%}"
            steps.append(f"| {num_rows} | {context} | {best.launches_per_layer} | {times} | {shares} |")
    sys.stdout.write("\n".join([*kernels, "", *steps, ""]))


def _kernel_line(e: Estimate) -> str:
    copies = f"{e.per_weight:.1f} | {e.bytes_per_copy}" if e.per_weight else "- | -"
    name = e.kernel.removesuffix("_kernel")
    return f"| {name} | {e.rows} | {copies} | {e.programs} | {e.at_once} | {1e6 * e.seconds:.1f} | {e.share:.0%} |"


if __name__ == "__main__":
    main()
