"""Measure packs of a large random model: starts, memory of a second server, speed of mapped and copied weights.

    python -m tests.measure.packs.pack_start make DIR [--layers N] [--quantization int4]
    python -m tests.measure.packs.pack_start start DIR [--cold] [--rounds N] [--flag=--weights-memory=copy]
    python -m tests.measure.packs.pack_start share DIR
    python -m tests.measure.packs.pack_start decode DIR [--pairs N] [--threads N]

make: write a pack of Mixtral-8x7B's layers, all equal and random, with the bundled model's tokenizer (0.77 GB a layer
in int4; 32 layers and embeddings are 25.1 GB). start: seconds until a server is ready, and of its phase "weights";
--cold drops the file from the page cache before each. share: Pss and Rss of the mapped file in two servers at once,
once its pages are read. decode: tokens per second of one client, in pairs of a mapping and a copying engine of one
process, in turns; needs twice the memory of the weights. Nothing is asserted. Run it on an idle machine.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import msgspec

from model.config import ModelConfig
from tests.measure.gguf.load import drop
from tests.support.paths import DEMO, ROOT
from tests.support.ports import free_port
from tests.support.servers.child_processes import engine_pid_of

WEIGHTS = "weights.smoe"
READY_LIMIT_S = 1800.0
NUM_TOKENS = 16  # of a timed completion: turns are short, because the memory's speed changes


def mixtral_config(demo: ModelConfig, num_layers: int) -> ModelConfig:
    """Return the shape of Mixtral-8x7B with so many layers, and the demo's tokens."""
    return replace(
        demo,
        vocab_size=32000,
        dim=4096,
        num_layers=num_layers,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        hidden_dim=14336,
        window=None,
        context_len=32768,
        rope_theta=1e6,
    )


def make(directory: Path, num_layers: int, quantization: str) -> None:
    """Write a pack whose layers are the same random one, so that drawing numbers does not take an hour."""
    import torch

    from engine.config import EngineConfig
    from engine.startup.backend import choose_backend
    from model.checkpoint.config_file import load_config
    from model.checkpoint.pack.config import write_config
    from model.checkpoint.pack.header import read_header
    from model.checkpoint.pack.side_files import copy_side_files
    from model.dummy_weights import random_model
    from tests.support.checkpoints.packs import write_pack

    config = mixtral_config(load_config(DEMO)[0], num_layers)
    settings = {"model": "", "device": "cpu", "backend": "native", "quantization": quantization}
    backend = choose_backend(msgspec.convert(settings, EngineConfig), torch.device("cpu"), torch.bfloat16)
    one_layer = replace(config, num_layers=1)
    model = random_model(one_layer, torch.bfloat16, torch.device("cpu"), backend.ops, seed=0)
    weights = replace(model.weights, layers=model.weights.layers * num_layers)

    def add_side_files(folder: Path) -> None:
        copy_side_files(DEMO, folder)
        write_config(folder, config, "bfloat16")

    write_pack(weights, config, directory, quantization, add_side_files)
    show(bytes=read_header(directory).file_bytes, layers=num_layers, quantization=quantization)


@contextmanager
def server(model: Path, flags: list[str]) -> Iterator[tuple[str, int, float]]:
    """Start a server; give its URL, its process id and the seconds until it was ready."""
    port = free_port()
    command = [sys.executable, "-m", "server", "serve", str(model), "--port", str(port), *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process, start + READY_LIMIT_S)
        yield url, process.pid, time.monotonic() - start
    finally:
        process.terminate()
        process.wait()


def wait_until_ready(
    url: str, process: "subprocess.Popen[bytes]", deadline_s: float, *, path: str = "/health/ready"
) -> None:
    """Ask until the server is ready. Exits if it has ended."""
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        try:
            if httpx.get(f"{url}{path}", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise SystemExit("the server did not become ready")


def start(model: Path, rounds: int, is_cold: bool, flags: list[str]) -> None:
    """Print the seconds of each start, and of the first token after it."""
    for number in range(rounds):
        if is_cold:
            drop(model / WEIGHTS)
        with server(model, flags) as (url, _, ready_s):
            metrics = httpx.get(f"{url}/metrics").text
            phases = re.findall(r'smoe_startup_seconds\{[^}]*phase="([^"]+)"[^}]*\} (\S+)', metrics)
            asked = time.monotonic()
            complete(url, model.name, 1)
            first_token_s = time.monotonic() - asked
            show(round=number, ready_s=ready_s, first_token_s=first_token_s, **{k: float(v) for k, v in phases})


def complete(url: str, model: str, num_tokens: int) -> None:
    """Send one request and wait for its end."""
    body = {"model": model, "prompt": "It was", "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
    httpx.post(f"{url}/v1/completions", json=body, timeout=READY_LIMIT_S).raise_for_status()


def share(model: Path) -> None:
    """Print the memory of the mapped file in two servers: alone, and both at once."""
    flags = ["--kv-cache-memory-bytes", "256MiB"]
    with server(model, flags) as (url, first, _):
        settle(url, model)
        show(servers=1, **mapped_memory(engine_pid_of(first), model))
        with server(model, flags) as (other, second, _):
            settle(other, model)
            for number, pid in enumerate((first, second), start=1):
                show(servers=2, server=number, **mapped_memory(engine_pid_of(pid), model))


def settle(url: str, model: Path) -> None:
    """Wait until the mapped pages of the engine grow no more."""
    before, now = -1, 0
    while now != before:
        complete(url, model.name, 4)
        time.sleep(2.0)
        match = re.search(r"^smoe_weights_cached_bytes(?:\{[^}]*\})? (\S+)$", httpx.get(f"{url}/metrics").text, re.M)
        before, now = now, int(float(match[1])) if match else 0


def mapped_memory(pid: int, model: Path) -> dict[str, int]:
    """Return Rss, Pss, huge pages and private bytes of a process' maps of the weights, and its anonymous memory."""
    sums = {"Rss": 0, "Pss": 0, "FilePmdMapped": 0, "Private_Clean": 0, "Private_Dirty": 0}
    is_weights = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_weights = line.endswith(str((model / WEIGHTS).resolve()))
        elif is_weights and (match := re.match(r"(\w+):\s+(\d+) kB$", line)) and match[1] in sums:
            sums[match[1]] += int(match[2]) * 1024
    status = Path(f"/proc/{pid}/status").read_text()
    anonymous = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return sums | {"RssAnon": int(anonymous[1]) * 1024 if anonymous else 0}


def decode(model: Path, pairs: int, threads: int | None) -> None:
    """Print tokens per second of mapped and copied weights, in turns, and the quartiles of the pairs' ratios."""
    from smoe import LocalEngine, SamplingParams

    drop(model / WEIGHTS)  # pages that are read get large, those that were written are small
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
    settings = {"num_kv_blocks": 64, "max_num_batched_tokens": 64, "threads": threads, "speculation": "off"}
    engines = {memory: LocalEngine(model, weights_memory=memory, **settings) for memory in ("map", "copy")}

    def tokens_per_s(memory: str) -> float:
        begin = time.monotonic()
        engines[memory].generate([[1, 5, 9]], params)
        return NUM_TOKENS / (time.monotonic() - begin)

    wait_until_mapped(model)
    for memory in engines:
        tokens_per_s(memory)
    show(**mapped_memory(os.getpid(), model))
    taken: dict[str, list[float]] = {"map": [], "copy": []}
    for number in range(pairs):
        for memory in ("map", "copy") if number % 2 == 0 else ("copy", "map"):
            taken[memory].append(tokens_per_s(memory))
    ratios = [mapped / copied for mapped, copied in zip(taken["map"], taken["copy"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    show(pairs=pairs, map_over_copy_median=middle, low_quartile=low, high_quartile=high)
    show(**{f"{memory}_best": max(speeds) for memory, speeds in taken.items()})
    show(**{f"{memory}_median": statistics.median(speeds) for memory, speeds in taken.items()})


def wait_until_mapped(model: Path) -> None:
    """Wait until the background has read and mapped the whole file into this process."""
    size = (model / WEIGHTS).stat().st_size
    while mapped_memory(os.getpid(), model)["Rss"] < size:
        time.sleep(0.5)


def show(**figures: object) -> None:
    """Print one line of figures."""
    sys.stdout.write(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "start", "share", "decode"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--quantization", default="int4", choices=("none", "lossless", "int8", "int4"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--threads", type=int, help="of decode; default: all cores")
    parser.add_argument("--flag", action="append", default=[], help="flag of the server, as --flag=--threads=2")
    arguments = parser.parse_args()
    directory = arguments.directory.absolute()
    match arguments.what:
        case "make":
            make(directory, arguments.layers, arguments.quantization)
        case "start":
            start(directory, arguments.rounds, arguments.cold, arguments.flag)
        case "share":
            share(directory)
        case _:
            decode(directory, arguments.pairs, arguments.threads)


if __name__ == "__main__":
    main()
