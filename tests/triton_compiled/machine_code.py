"""Read compiled kernels: their resources, and the instructions of their inner loops."""

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\S.*?)\s*;")
INSTRUCTION_BYTES = 16  # since Volta
HEADER = struct.Struct("<II4QII2Q")  # of a section: name, type, flags, address, position, size, four others
JUMP = re.compile(r"BRA\b.*\b0x([0-9a-f]+)$")
PRODUCTS = ("HGMMA", "HMMA")  # on Hopper, before


@dataclass(frozen=True)
class Kernel:
    """A kernel as Triton's compiler returns it."""

    cubin: bytes
    shared_bytes: int


@dataclass(frozen=True)
class MachineCode:
    """One kernel on one architecture."""

    registers: int
    spills: int  # instructions that move registers to local memory or back
    shared_bytes: int
    instructions: tuple[str, ...]
    loops: tuple[tuple[str, ...], ...]  # the innermost ones

    @property
    def loop(self) -> tuple[str, ...]:
        """The shortest innermost loop with matrix products, empty without one."""
        with_products = [body for body in self.loops if any(text.startswith(PRODUCTS) for text in body)]
        return min(with_products, key=len, default=())

    def count(self, prefix: str, in_loop: bool = True) -> int:
        """Count instructions whose text begins with `prefix`, such as "LDGSTS.E.BYPASS.128"."""
        return sum(text.startswith(prefix) for text in (self.loop if in_loop else self.instructions))

    def opcodes(self) -> Counter[str]:
        """Count the loop's instructions by name without suffixes."""
        return Counter(re.split(r"[.\s]", text)[0] for text in self.loop)


def read_machine_code(kernels: Sequence[Kernel], arch: int) -> list[MachineCode]:
    """Disassemble kernels of one architecture with the tools that come with Triton.

    All at once, one behind the other: nvdisasm takes as long for its start as for a hundred kernels.
    """
    codes = [code_section(kernel.cubin) for kernel in kernels]
    instructions = disassemble(b"".join(codes), arch)
    found, first = [], 0
    for kernel, code in zip(kernels, codes, strict=True):
        end = first + len(code) // INSTRUCTION_BYTES
        own = tuple(instructions[first:end])
        spills = sum(instruction.startswith(("STL", "LDL")) for instruction in own)
        loops = tuple(_loops(own, first))
        found.append(MachineCode(num_registers(kernel.cubin), spills, kernel.shared_bytes, own, loops))
        first = end
    return found


def code_section(cubin: bytes) -> bytes:
    """Return a kernel's instructions. A cubin is an ELF file (elf(5)), whose section .text.NAME has them."""
    [first_header] = struct.unpack_from("<Q", cubin, 0x28)
    num_headers, name_header = struct.unpack_from("<HH", cubin, 0x3C)
    headers = [HEADER.unpack_from(cubin, first_header + index * HEADER.size) for index in range(num_headers)]
    names = headers[name_header][4]
    [(position, size)] = [header[4:6] for header in headers if cubin.startswith(b".text.", names + header[0])]
    return cubin[position : position + size]


def num_registers(cubin: bytes) -> int:
    """Return the number of registers of each thread."""
    [registers] = re.findall(r"REG:(\d+)", run_tool("cuobjdump", cubin, "--dump-resource-usage"))
    return int(registers)


def disassemble(code: bytes, arch: int) -> list[str]:
    """Return the instructions without predicates. Jumps name their targets by position."""
    variant = "a" if arch >= 90 else ""  # with the instructions that later architectures lack: Triton compiles for it
    text = run_tool("nvdisasm", code, "--binary", f"SM{arch}{variant}")
    instructions = [found[1] for found in map(INSTRUCTION.match, text.splitlines()) if found]
    assert len(instructions) * INSTRUCTION_BYTES == len(code)
    return instructions


def run_tool(tool: str, content: bytes, *flags: str) -> str:
    """Return what one of the tools prints about a file with this content."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(content)
        file.flush()
        return subprocess.run([TOOLS / tool, *flags, file.name], capture_output=True, text=True, check=True).stdout


def _loops(instructions: Sequence[str], first: int) -> list[tuple[str, ...]]:
    """Return the innermost loops: from an instruction to a jump back to it, without another such jump inside. `first`:
    place of the first instruction in what was disassembled."""
    spans = []
    for index, text in enumerate(instructions):
        jump = JUMP.match(text)
        target = int(jump[1], 16) // INSTRUCTION_BYTES - first if jump else index
        if target < index:
            spans.append((target, index))
    inner = [(a, b) for a, b in spans if not any(a <= c and d <= b and (c, d) != (a, b) for c, d in spans)]
    return [tuple(instructions[begin : end + 1]) for begin, end in inner]
