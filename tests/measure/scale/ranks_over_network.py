"""python -m tests.measure.scale.ranks_over_network [--rounds N]

Measure what a network between two ranks costs: the time between two tokens of one client, from two ranks of one thread
in one host, and from the same two in two network namespaces behind a veth pair. Beside it the median time of one
gather of an empty group between the same namespaces. The checkpoint has random weights. Needs root and iproute2. For a
machine without other load; about three minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from engine.distributed.mesh import connected_group
from engine.distributed.stores import join_store, new_store
from model.cut import Cut
from model.ops.native.group import SocketGroup
from tests.measure.scale.capacity_plan import SHAPES, VOCAB_SIZE
from tests.measure.scale.fleet_link import cable
from tests.support.checkpoints.mistral_tokenizers import V1
from tests.support.checkpoints.mixtral import save_random_checkpoint
from tests.support.hosts.two_hosts import start_host
from tests.support.ports import free_port
from tests.support.servers.running import start_server

NUM_GATHERS = 3000
TIMEOUT_S = 60.0
FLAGS = ("--threads", "1", "--max-model-len", "512", "--max-num-seqs", "4", "--max-num-batched-tokens", "128")


def gather_times(group: SocketGroup, width: int) -> list[float]:
    """Gather a row again and again; return the seconds of each."""
    part, times = torch.zeros(1, len(group.cut.part(width, 32))), []
    for _ in range(NUM_GATHERS):
        begun_s = time.perf_counter()
        group.gather(part, width, 32)
        times.append(time.perf_counter() - begun_s)
    return times


def network_gather_s(name: str, here: str, there: str, width: int) -> float:
    """Return the median seconds of a gather between this process and one in the namespace."""
    store = new_store(here, TIMEOUT_S)
    command = [sys.executable, "-m", "tests.measure.scale.ranks_over_network", "--peer", here, str(store.port), there]
    peer = subprocess.Popen(["ip", "netns", "exec", name, *command, "--width", str(width)])
    try:
        return statistics.median(gather_times(connected_group(Cut(0, 2), store, here, TIMEOUT_S), width))
    finally:
        peer.wait()


def gap_s(url: str) -> float:
    """Return the median seconds between two tokens of one client."""
    options = ("--clients", "1", "--requests", "6", "--prompt-tokens", "32", "--output-tokens", "128")
    command = [sys.executable, "-m", "server", "bench", "serve", url, *options, "--vocab-size", str(VOCAB_SIZE)]
    result = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    [run] = json.loads(result.stdout)["runs"]
    assert not run["errors"], run["error_messages"]
    return float(run["gap_s"]["p50"])


@contextmanager
def on_one_host(model: str) -> Iterator[str]:
    """Start two ranks that share memory; yield the server's URL."""
    with start_server(*FLAGS, "--tensor-parallel-size", "2", model=model) as server:
        yield server.url


@contextmanager
def on_two_hosts(model: str, name: str, here: str, there: str) -> Iterator[str]:
    """Start a rank here and one in the namespace; yield the server's URL."""
    group = ("--tensor-parallel-size", "2", "--nnodes", "2", "--master-addr", here, "--master-port", str(free_port()))
    enter = ("ip", "netns", "exec", name)
    other = start_host(model, *group, *FLAGS, "--node-rank", "1", address=there, prefix=enter)
    with other, start_server(*group, *FLAGS, model=model) as server:
        yield server.url


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def measure(num_rounds: int) -> None:
    """Run both in turns."""
    shape, name = SHAPES["bench-400m"], f"smoe{os.getpid()}"
    num_gathers = 4 * shape.num_layers + 1
    with tempfile.TemporaryDirectory() as folder, cable(name) as there:
        here = f"{there.rpartition('.')[0]}.1"
        (Path(folder) / "tokenizer.model").symlink_to(V1)
        save_random_checkpoint(shape, Path(folder))
        one_s, two_s = [], []
        for _ in range(num_rounds):
            with on_one_host(folder) as url:
                one_s.append(gap_s(url))
            with on_two_hosts(folder, name, here, there) as url:
                two_s.append(gap_s(url))
            say(f"gap of one host {one_s[-1] * 1e3:.2f} ms, of two {two_s[-1] * 1e3:.2f} ms")
        gather_s = network_gather_s(name, here, there, shape.dim)
        cost_s = statistics.median(two_s) - statistics.median(one_s)
        say(
            f"cost of the network {cost_s * 1e3:.2f} ms a step of {num_gathers} gathers; one gather by itself "
            f"{gather_s * 1e6:.0f} us: {cost_s / (num_gathers * gather_s):.2f} times {num_gathers} of them"
        )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.scale.ranks_over_network")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", nargs=3, metavar=("ADDRESS", "PORT", "OWN"), help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, default=1024, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        address, port, own = options.peer
        store = join_store(address, int(port), TIMEOUT_S)
        gather_times(connected_group(Cut(1, 2), store, own, TIMEOUT_S), options.width)
        return
    measure(options.rounds)


if __name__ == "__main__":
    main()
