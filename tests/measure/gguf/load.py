"""Measure how long GGUF files take to load from a cold disk, and how much memory beyond the weights.

    python -m tests.measure.gguf.load [--threads N] [--rounds N] FILE.gguf ...

Each round drops the file from the page cache, reads it once with plain reads ("disk"), drops it again and loads it in a
process of its own. "start": of that process with its imports. "load": until all weights are packed, which should take
at most disk + 3 s. "beyond": the peak of the process' memory during the load above its memory after it, which should be
at most one expert's matrix. A figure is the best of its rounds. On an idle machine: about 10 s per GB and round.
"""

import argparse
import mmap
import multiprocessing
import os
import re
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

PIECE_BYTES = 8 << 20
SAMPLES = 64  # places of a file that are probed for being cached
STILL_CACHED = 0.05  # share of them above which a file counts as cached


@dataclass(frozen=True)
class Load:
    """One load: seconds, and bytes of memory."""

    start_s: float
    load_s: float
    beyond_bytes: int
    weight_bytes: int
    expert_bytes: int  # of the largest matrix of one expert in the file


def drop(file: Path) -> None:
    """Drop a file from the page cache. Exits if the system keeps it there."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if _cached_share(descriptor) > STILL_CACHED:
            raise SystemExit(f"{file} stays in the page cache: another program uses it, or its file system is memory")
    finally:
        os.close(descriptor)


def _cached_share(descriptor: int) -> float:
    """Return the share of probed pages that can be read without waiting."""
    size, cached = os.fstat(descriptor).st_size, 0
    for index in range(SAMPLES):
        at = index * (size // SAMPLES) // mmap.PAGESIZE * mmap.PAGESIZE
        try:
            cached += os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT) > 0
        except BlockingIOError:
            continue
    return cached / SAMPLES


def read_s(file: Path) -> float:
    """Return the seconds that reading a file from the disk takes."""
    drop(file)
    piece, start = bytearray(PIECE_BYTES), time.monotonic()
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(piece):
            pass
    return time.monotonic() - start


def load(file: Path, threads: int) -> Load:
    """Load a file in a new process."""
    drop(file)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    start = time.monotonic()
    process = context.Process(target=_load, args=(file, threads, theirs))
    process.start()
    theirs.close()
    ours.recv()
    start_s = time.monotonic() - start
    load_s, beyond_bytes, weight_bytes, expert_bytes = ours.recv()
    process.join()
    return Load(start_s, load_s, beyond_bytes, weight_bytes, expert_bytes)


def _load(file: Path, threads: int, result: Connection) -> None:
    import torch

    from model.checkpoint.checkpoint import read_config, read_stored_weights
    from model.loader import LoadOptions, load_model
    from model.ops.interface import packed_bytes
    from model.ops.native.library import NativeLibrary
    from model.ops.native.ops import NativeOps

    ops = NativeOps(NativeLibrary(), threads)
    result.send(None)
    start = time.monotonic()
    config, _ = read_config(file)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    model = load_model(file, config, ops, LoadOptions(torch.bfloat16, torch.device("cpu"), num_threads=threads))
    load_s = time.monotonic() - start
    stored = read_stored_weights(file, config).items()
    experts = [weight.num_bytes for name, weight in stored if ".experts." in name]
    beyond = _status_bytes("VmHWM") - _status_bytes("VmRSS")
    result.send((load_s, beyond, packed_bytes(model.weights), max(experts, default=0)))


def _status_bytes(name: str) -> int:
    match = re.search(rf"^{name}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def row(file: Path, disk_s: float, loads: list[Load]) -> str:
    """Format one file's figures as a row of the table."""
    best = min(loads, key=lambda one: one.load_s)
    size = file.stat().st_size
    cells = [
        file.stem,
        f"{size / 1e9:.2f}",
        f"{disk_s:.2f}",
        f"{size / disk_s / 1e9:.2f}",
        f"{min(one.start_s for one in loads):.2f}",
        f"{best.load_s:.2f}",
        f"{best.load_s - disk_s:+.2f}",
        f"{best.weight_bytes / 1e9:.2f}",
        f"{min(one.beyond_bytes for one in loads) / 1e6:.0f}",
        f"{best.expert_bytes / 1e6:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.gguf")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    header = ["file", "GB", "disk s", "GB/s", "start s", "load s", "load - disk", "weights GB"]
    header += ["beyond MB", "an expert's matrix MB"]
    sys.stdout.write(f"| {' | '.join(header)} |\n{'|---' * len(header)}|\n")
    for file in arguments.files:
        disk_s = min(read_s(file) for _ in range(arguments.rounds))
        loads = [load(file, arguments.threads) for _ in range(arguments.rounds)]
        sys.stdout.write(f"{row(file, disk_s, loads)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
