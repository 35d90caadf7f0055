"""python -m tests.gpu.group [--ranks N]

Let N ranks with a GPU each gather by NCCL (engine/distributed/torch_group.py): parts that are even and uneven, a CUDA
graph that contains gathers and is replayed between plain ones, and token ids that come from rank 0's GPU. Each rank
checks what it gets and prints the median time of a gather. Needs N GPUs; nobody has run it on any.
"""

import argparse
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor

from engine.distributed.stores import join_store, new_store
from engine.distributed.torch_group import TorchGroup
from model.cut import PANEL, Cut
from model.mixtral_cuda_graphs import CudaRecorder

ADDRESS, TIMEOUT_S = "127.0.0.1", 60.0
WIDTHS = (4096, 14336, 32000, 1000)  # of Mixtral-8x7B, and one whose parts are uneven
NUM_ROWS, NUM_REPLAYS = 16, 20


def part_of(whole: Tensor, cut: Cut) -> Tensor:
    """Return this rank's columns."""
    columns = cut.part(whole.shape[1], PANEL)
    return whole[:, columns.start : columns.stop]


def check_gathers(group: TorchGroup, device: torch.device) -> None:
    """Gather rows of each width; print how long one takes."""
    for width in WIDTHS:
        whole = torch.arange(NUM_ROWS * width, device=device).view(NUM_ROWS, width).bfloat16()
        part, times = part_of(whole, group.cut), []
        for _ in range(200):
            torch.cuda.synchronize()
            begun_s = time.perf_counter()
            gathered = group.gather(part, width, PANEL)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begun_s)
            assert torch.equal(gathered, whole), f"{width} columns"
        say(group, f"{NUM_ROWS} rows of {width}: {statistics.median(times) * 1e6:.0f} us")


def check_graph(group: TorchGroup, device: torch.device) -> None:
    """Replay products with gathers between them, in turns with the same without a graph."""
    generator = torch.Generator(device).manual_seed(0)
    weights = torch.randn(1024, 1024, device=device, generator=generator) / 32
    columns = group.cut.part(1024, PANEL)
    x, out = torch.zeros(NUM_ROWS, 1024, device=device), torch.zeros(NUM_ROWS, 1024, device=device)

    def work() -> Tensor:
        rows = x
        for _ in range(8):
            rows = group.gather(rows @ weights[:, columns.start : columns.stop], 1024, PANEL)
        return out.copy_(rows)

    replay = CudaRecorder(in_group=True).record(work)
    for _ in range(NUM_REPLAYS):
        x.copy_(torch.randn(NUM_ROWS, 1024, device=device, generator=generator))  # equal on all ranks
        replay()
        replayed = out.clone()
        assert torch.equal(work(), replayed), "a replay differs"
    say(group, f"{NUM_REPLAYS} replays of 8 gathers equal plain ones")


def check_tokens(group: TorchGroup, device: torch.device) -> None:
    """Get rank 0's ids, which its GPU computes in this moment."""
    for count in (1, 7, 256):
        expected = torch.arange(count, device=device) * 3
        token_ids = expected.clone() if group.cut.rank == 0 else torch.zeros_like(expected)
        group.broadcast(token_ids)
        assert torch.equal(token_ids, expected), "token ids differ"
    say(group, "token ids are those of rank 0")


def say(group: TorchGroup, text: str) -> None:
    sys.stdout.write(f"rank {group.cut.rank}: {text}\n")
    sys.stdout.flush()


def run(rank: int, size: int, port: int) -> None:
    """Be one rank."""
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    group = TorchGroup(Cut(rank, size), join_store(ADDRESS, port, TIMEOUT_S), device, TIMEOUT_S)
    for check in (check_gathers, check_graph, check_tokens):
        check(group, device)


def main() -> int:
    """Start the ranks; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.group")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rank", nargs=2, type=int, metavar=("RANK", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        run(options.rank[0], options.ranks, options.rank[1])
        return 0
    store = new_store(ADDRESS, TIMEOUT_S)
    command = [sys.executable, "-m", "tests.gpu.group", "--ranks", str(options.ranks), "--rank"]
    ranks = [subprocess.Popen([*command, str(rank), str(store.port)]) for rank in range(options.ranks)]
    return max(abs(rank.wait()) for rank in ranks)


if __name__ == "__main__":
    sys.exit(main())
