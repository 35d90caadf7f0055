"""Measure how fast checkpoints are read, quantized and packed, and how much memory that needs beside the weights.

    python -m tests.measure.load_speed [--threads N] [--rounds N] [--cold] [--formats none,int8,int4] MODEL ...

MODEL is a directory or a GGUF file. Each load is a process of its own, formats in turns. The files are in the page
cache, unless --cold drops them before each load. "GB/s": bytes of the files by the wall time until all weights are
packed; "CPU": the same by the processor's time, of all threads and the system. "beyond": the peak of the process'
memory during the load above its memory after it. Figures are the best of the rounds.
"""

import argparse
import multiprocessing
import os
import re
import resource
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from tests.measure.gguf.load import drop

FORMATS = ("none", "int8", "int4")


def files_of(model: Path) -> list[Path]:
    return [model] if model.is_file() else sorted(model.glob("*.safetensors"))


def load(model: Path, quantization: str, threads: int, cold: bool) -> tuple[float, float, int]:
    """Load in a new process; return wall and CPU seconds and the bytes beyond the weights."""
    for file in files_of(model):
        if cold:
            drop(file)
        else:
            with file.open("rb") as stream:
                while stream.read(64 << 20):
                    pass
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_load, args=(model, quantization, threads, theirs))
    process.start()
    theirs.close()
    figures: tuple[float, float, int] = ours.recv()
    process.join()
    return figures


def _load(model: Path, quantization: str, threads: int, result: Connection) -> None:
    import torch

    from model.checkpoint.checkpoint import read_config
    from model.loader import LoadOptions, load_model
    from model.ops.native.library import NativeLibrary
    from model.ops.native.ops import NativeOps

    torch.set_num_threads(threads)
    ops = NativeOps(NativeLibrary(), threads, None, quantization)  # type: ignore[arg-type]
    config, _ = read_config(model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    start, cpu = time.monotonic(), _cpu_s()
    network = load_model(model, config, ops, LoadOptions(torch.bfloat16, torch.device("cpu"), num_threads=threads))
    figures = time.monotonic() - start, _cpu_s() - cpu, _status_bytes("VmHWM") - _status_bytes("VmRSS")
    del network
    result.send(figures)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _status_bytes(name: str) -> int:
    match = re.search(rf"^{name}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--formats", default=",".join(FORMATS))
    arguments = parser.parse_args()
    formats = arguments.formats.split(",")
    sys.stdout.write(
        "| model | format | GB | wall s | GB/s | CPU s | GB/s of CPU | beyond MB |\n|---|---|---|---|---|---|---|---|\n"
    )
    for model in arguments.models:
        size = sum(file.stat().st_size for file in files_of(model))
        rounds = [
            {each: load(model, each, arguments.threads, arguments.cold) for each in formats}
            for _ in range(arguments.rounds)
        ]
        for each in formats:
            wall_s, cpu_s, beyond = (min(figures) for figures in zip(*(found[each] for found in rounds), strict=True))
            figures = f"{size / 1e9:.2f} | {wall_s:.2f} | {size / wall_s / 1e9:.2f} | {cpu_s:.2f}"
            sys.stdout.write(f"| {model.name} | {each} | {figures} | {size / cpu_s / 1e9:.2f} | {beyond / 1e6:.0f} |\n")


if __name__ == "__main__":
    main()
