"""python -m tests.measure.batch_throughput [--lines N] [--concurrency N] [--rounds N] [--max-tokens N]

Compare `smoe run-batch` with the same requests sent by the client of `smoe bench`, on one server with the bundled
model. Each round runs both; which is first alternates. Print the requests per second and the client's CPU time per
request, then the medians and the median of the ratios. For a machine without other load.

The time of run-batch is that of its runner, from its first request to the last answer in the file. Starting the
interpreter and reading the input twice, which every batch pays once, is printed beside it.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from server.batch.journal import Journal
from server.batch.lines import BatchLine, read_lines
from server.batch.runner import Progress, Runner
from server.bench.http_client import Endpoint, request
from server.cli.run_batch import sender
from tests.support.servers.running import MODEL, RunningServer, start_server


def write_batch(path: Path, num_lines: int, max_tokens: int) -> None:
    """Write requests of equal lengths."""
    body = {"model": MODEL, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    with path.open("w") as file:
        for i in range(num_lines):
            fields = {**body, "prompt": f"It was the {i}th of them that"}
            line = {"custom_id": f"q{i}", "method": "POST", "url": "/v1/completions", "body": fields}
            file.write(json.dumps(line) + "\n")


def run_bare(url: str, lines: Sequence[BatchLine], concurrency: int) -> None:
    """Send all requests and read the replies, without a journal."""
    endpoint = Endpoint.parse(url)
    waiting = iter([(line.url, line.body_bytes) for line in lines])

    async def client() -> None:
        for path, body in waiting:
            async with request(endpoint, "POST", path, body) as response:
                await response.body()
                assert response.status == 200

    async def all_clients() -> None:
        await asyncio.gather(*(client() for _ in range(concurrency)))

    asyncio.run(all_clients())


def run_batch(url: str, source: Path, num_lines: int, concurrency: int) -> None:
    """Run the batch as the command does, in this process."""
    output = source.with_suffix(f".{time.time_ns()}")
    with Journal(output) as journal:
        progress = Progress(num_lines)
        runner = Runner(sender(Endpoint.parse(url)), journal, progress, lambda _: None)
        asyncio.run(runner.run(read_lines(source, is_checked=True), concurrency))
        assert progress.num_done == num_lines and not progress.num_failed


def seconds_of(work: Callable[[], None]) -> tuple[float, float]:
    """Return how long the work takes, and the CPU time that this process spends on it."""
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begin_s, time.process_time() - begin_cpu_s


def whole_command(server: RunningServer, source: Path, concurrency: int) -> None:
    """Run the command in a process of its own."""
    flags = ["-o", str(source.with_suffix(".out")), "--url", server.url, "--concurrency", str(concurrency)]
    command = [sys.executable, "-m", "server", "run-batch", str(source), *flags]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def rounds(server: RunningServer, folder: Path, arguments: argparse.Namespace) -> list[tuple[float, float]]:
    """Return (bare, batch) requests per second of each round."""
    rates = []
    for number in range(arguments.rounds):
        source = folder / f"in{number}"
        write_batch(source, arguments.lines, arguments.max_tokens)
        lines = list(read_lines(source))
        works = {
            "bare": lambda lines=lines: run_bare(server.url, lines, arguments.concurrency),
            "batch": lambda source=source: run_batch(server.url, source, arguments.lines, arguments.concurrency),
        }
        names = list(works) if number % 2 == 0 else list(reversed(works))
        took_s = {name: seconds_of(works[name]) for name in names}
        rates.append((arguments.lines / took_s["bare"][0], arguments.lines / took_s["batch"][0]))
        cpu_us = {name: 1e6 * took_s[name][1] / arguments.lines for name in works}
        sys.stdout.write(
            f"client {rates[-1][0]:8.1f}/s ({cpu_us['bare']:.0f} us of CPU)   "
            f"run-batch {rates[-1][1]:8.1f}/s ({cpu_us['batch']:.0f} us of CPU)\n"
        )
    return rates


def main() -> int:
    """Print the rates."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.batch_throughput")
    parser.add_argument("--lines", type=int, default=400, help="requests of a round (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=16, help="requests at a time (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=32, help="of a reply (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, start_server("--no-enable-prefix-caching") as server:
        folder = Path(name)
        warm_up = folder / "warm-up"
        write_batch(warm_up, arguments.concurrency, arguments.max_tokens)
        run_bare(server.url, list(read_lines(warm_up)), arguments.concurrency)
        rates = rounds(server, folder, arguments)
        write_batch(folder / "whole", arguments.lines, arguments.max_tokens)
        whole_s, _ = seconds_of(lambda: whole_command(server, folder / "whole", arguments.concurrency))
    bare, batch = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(batch / bare for bare, batch in rates)
    sys.stdout.write(f"medians: client {bare:.1f}/s, run-batch {batch:.1f}/s; median of the ratios {ratio:.3f}\n")
    sys.stdout.write(f"the whole command, with its start: {whole_s:.2f} s for {arguments.lines} lines\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
