"""Measure servers of a pack that is larger than memory, with and without --expert-memory, beside what the disk allows.

    python -m tests.measure.packs.larger_than_memory DIR [--modes auto,20.5GiB,map] [--clients 1,16] [--memory GIB]
        [--tokens 8,24] [--rounds N] [--flag=--kv-cache-memory-bytes=512MiB ...] [--llama-server PATH --gguf FILE]

DIR is a pack, such as one of `python -m tests.measure.packs.pack_start make`. A mode is a size for --expert-memory, or
`map`: without it; or `llama`: llama.cpp's server, which maps FILE, the GGUF file that DIR was made of (as by `python -m
tests.measure.gguf.real_width_file FILE --type Q4_K --layers 32 --equal-layers`; file and pack take 53 GB of disk).

For each mode the files are dropped from the page cache, the disk's speed is sampled, and a server is started. Tokens
per second of so many clients follow from the difference of two lengths of completions (--tokens), the shorter one
twice, so that the first fills the places of experts. `read_gb` is what a step read from the disk meanwhile
(/proc/vmstat, so of the whole machine), `floor_s` is read_gb / disk speed, and `share` is floor_s / step_s: 1 means
that only fewer bytes or a faster disk would help. `missing_gb` are the experts that do not fit: what a step must read
if its rows need all experts. --memory runs the servers in a memory cgroup of that size, which stands for a machine
with so little; `kills` are the processes that the kernel killed in it. Nothing is asserted. Run it on an idle machine.
"""

import argparse
import asyncio
import contextlib
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx

from engine.capacity.machine.disk_speed import disk_rate
from engine.capacity.machine.host_resources import num_cores
from model.checkpoint.pack.experts import expert_tensors
from model.checkpoint.pack.header import WEIGHTS_NAME, read_header
from tests.measure.gguf.load import drop
from tests.measure.packs.expert_store import DISK_SAMPLE_BYTES, PROMPT_TOKENS, show
from tests.measure.packs.pack_start import READY_LIMIT_S, wait_until_ready
from tests.measure.reliability.memory_cgroups import GIB, MemoryCgroup
from tests.support.paths import ROOT
from tests.support.ports import free_port

FLAGS = ["--max-model-len=128", "--max-num-batched-tokens=128", "--kv-cache-memory-bytes=512MiB"]


LLAMA_FLAGS = ["-np", "16", "-c", "4096", "--no-repack", "--no-cache-prompt", "--cache-ram", "0"]


def read_bytes() -> int:
    """Return the bytes that this machine has read from its disks."""
    match = re.search(r"^pgpgin (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


@contextlib.contextmanager
def server(model: Path, flags: Sequence[str], enter: Callable[[], None] | None) -> Iterator[str]:
    """Start a server; give its URL when it is ready. `enter` runs in its process first. Its log goes to stderr."""
    port = free_port()
    command = [sys.executable, "-m", "server", "serve", str(model), "--port", str(port), *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=sys.stderr, preexec_fn=enter)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process, time.monotonic() + READY_LIMIT_S)
        yield url
    finally:
        process.terminate()
        process.wait()


async def complete(url: str, model: str, num_clients: int, num_tokens: int) -> float:
    """Let so many clients get one completion each; return the seconds until all have it."""

    async def one(client: httpx.AsyncClient, index: int) -> None:
        rng = random.Random(index)
        body = {"model": model, "max_tokens": num_tokens, "temperature": 1.0, "seed": index, "ignore_eos": True}
        body["prompt"] = [rng.randrange(300, 900) for _ in range(PROMPT_TOKENS)]
        reply = await client.post(f"{url}/v1/completions", json=body, timeout=READY_LIMIT_S)
        reply.raise_for_status()

    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=100)) as client:
        start = time.monotonic()
        await asyncio.gather(*(one(client, index) for index in range(num_clients)))
        return time.monotonic() - start


@contextlib.contextmanager
def llama_server(program: Path, file: Path, enter: Callable[[], None] | None) -> Iterator[str]:
    """Start llama.cpp's server, which maps the file and keeps its layout; give its URL when it is ready."""
    port = free_port()
    command = [program, "-m", file, "--port", str(port), "-t", str(num_cores()), *LLAMA_FLAGS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=enter)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process, time.monotonic() + READY_LIMIT_S, path="/health")
        yield url
    finally:
        process.terminate()
        process.wait()


def measure(url: str, model: str, num_clients: int, tokens: tuple[int, int], disk: float) -> dict[str, float]:
    """Return the figures of so many clients."""
    few, many = tokens
    asyncio.run(complete(url, model, num_clients, few))
    seconds, num_bytes = [], []
    for count in (few, many):
        before = read_bytes()
        seconds.append(asyncio.run(complete(url, model, num_clients, count)))
        num_bytes.append(read_bytes() - before)
    step_s = (seconds[1] - seconds[0]) / (many - few)
    step_bytes = (num_bytes[1] - num_bytes[0]) / (many - few)
    return {
        "tokens_per_s": num_clients / step_s,
        "step_s": step_s,
        "read_gb": step_bytes / 1e9,
        "floor_s": step_bytes / disk,
        "share": step_bytes / disk / step_s,
    }


def metric(url: str, name: str) -> float:
    """Return a metric without labels of its own; 0 if the server has none."""
    match = re.search(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return float(match[1]) if match else 0.0


def measure_mode(directory: Path, mode: str, given: argparse.Namespace) -> None:
    """Measure one way to hold the experts."""
    for file in (directory / WEIGHTS_NAME, given.gguf):
        if file:
            drop(file)
    disk = disk_rate(directory, DISK_SAMPLE_BYTES, limit_s=60)
    experts = expert_tensors(read_header(directory))
    cgroup = MemoryCgroup(int(given.memory * GIB)) if given.memory else None
    flags = [*FLAGS, *given.flag, *([] if mode == "map" else [f"--expert-memory={mode}"])]
    enter = cgroup.enter if cgroup else None
    try:
        with (
            llama_server(given.llama_server, given.gguf, enter)
            if mode == "llama"
            else server(directory, flags, enter) as url
        ):
            slots = 0 if mode == "llama" else int(metric(url, "smoe_expert_store_slots"))
            missing = (experts.count - slots) * experts.largest_bytes if slots else 0
            show(mode=mode, disk_gb_per_s=disk / 1e9, slots=slots, experts=experts.count, missing_gb=missing / 1e9)
            for num_clients in map(int, given.clients.split(",")):
                tokens = tuple(map(int, given.tokens.split(",")))
                figures = measure(url, directory.name, num_clients, (tokens[0], tokens[1]), disk)
                show(mode=mode, clients=num_clients, **figures)
        if cgroup is not None:
            show(mode=mode, kills=cgroup.num_kills, peak_gib=cgroup.peak_bytes / GIB)
    finally:
        if cgroup is not None:
            cgroup.remove()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each mode, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--modes", default="auto,20.5GiB,map")
    parser.add_argument("--clients", default="1,16")
    parser.add_argument("--tokens", default="8,24", help="two lengths of completions")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--memory", type=float, help="GiB of a memory cgroup; without it the whole machine")
    parser.add_argument("--flag", action="append", default=[], help="of the servers, as --flag=--threads=2")
    parser.add_argument("--llama-server", type=Path, metavar="PATH", help="program of llama.cpp, for the mode llama")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="file of the mode llama")
    given = parser.parse_args(arguments)
    modes = given.modes.split(",")
    if "llama" in modes and not (given.llama_server and given.gguf):
        parser.error("the mode llama needs --llama-server and --gguf")
    for _ in range(given.rounds):
        for mode in modes:
            measure_mode(given.directory.absolute(), mode, given)


if __name__ == "__main__":
    main()
