"""python -m tests.measure.reliability.batch_kills [--lines N] [--kills N] [--seed N] [--demo]

Run a batch with `smoe run-batch`, kill it with SIGKILL at random moments and start it again, until it ends. Print the
pace and the memory of its processes over the run, and the number of answers. The engine is a fake one that answers at
once; with --demo it is the bundled model. Exit code 1 if a line has no answer or more than one.
"""

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.checkpoints.tokenizer_only import write_tokenizer
from tests.support.servers.running import MODEL, start_server
from tests.support.servers.server_process import running

NUM_PARTS = 10  # rows of the report
POLL_S = 0.02
CONCURRENCY = 32


@dataclass(frozen=True)
class Sample:
    """State of a run at one moment. `rss_bytes`: of the command's process, `server_rss_bytes`: of the server's."""

    time_s: float
    num_answers: int
    rss_bytes: int
    server_rss_bytes: int


class LineCounter:
    """Counts the lines of a file that grows; a torn last line that is cut off again was never counted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.num_lines = 0

    def update(self) -> int:
        """Read what was appended and return the number of lines."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                read = file.read()
            whole = read[: read.rfind(b"\n") + 1]
            self._offset += len(whole)
            self.num_lines += whole.count(b"\n")
        return self.num_lines


def write_batch(path: Path, model: str, num_lines: int) -> None:
    """Write requests for two tokens each."""
    body = {"model": model, "max_tokens": 2, "temperature": 0}
    with path.open("w") as file:
        for i in range(num_lines):
            line = {
                "custom_id": f"q{i}",
                "method": "POST",
                "url": "/v1/completions",
                "body": {**body, "prompt": f"{i}"},
            }
            file.write(json.dumps(line) + "\n")


def run_with_kills(folder: Path, url: str, server_pid: int, kill_at: list[int]) -> list[Sample]:
    """Run the batch of `folder`; kill the command when it has these numbers of answers. Return samples of all runs."""
    counter, samples = LineCounter(folder / "out"), [Sample(time.monotonic(), 0, 0, 0)]
    goals = iter([*kill_at, None])
    goal = next(goals)
    server = psutil.Process(server_pid)
    while True:
        process = subprocess.Popen(_command(folder, url), stderr=subprocess.PIPE, text=True)
        watched = psutil.Process(process.pid)
        while process.poll() is None and (goal is None or counter.num_lines < goal):
            time.sleep(POLL_S)
            with contextlib.suppress(psutil.Error):
                rss, server_rss = watched.memory_info().rss, server.memory_info().rss
                samples.append(Sample(time.monotonic(), counter.update(), rss, server_rss))
        if goal is None or process.poll() is not None:
            _, errors = process.communicate()
            sys.stdout.write(f"exit code {process.returncode}: {errors.strip()}\n")
            return samples
        process.kill()
        process.communicate()
        goal = next(goals)


def _command(folder: Path, url: str) -> list[str]:
    flags = ["-o", str(folder / "out"), "--url", url, "--concurrency", str(CONCURRENCY)]
    return [sys.executable, "-m", "server", "run-batch", str(folder / "in"), *flags]


def report(samples: list[Sample], num_lines: int) -> Iterator[str]:
    """Yield a row for each part of the batch: pace, and the largest memory in it."""
    yield f"{'answers':>10s} {'per s':>8s} {'us a line':>10s} {'RSS':>9s} {'server RSS':>11s}"
    first = samples[0]
    for part in range(1, NUM_PARTS + 1):
        goal = num_lines * part // NUM_PARTS
        members = [sample for sample in samples if first.num_answers <= sample.num_answers <= goal]
        last = members[-1]
        answers, seconds = last.num_answers - first.num_answers, last.time_s - first.time_s
        rss, server_rss = (max(getattr(m, name) for m in members) / 2**20 for name in ("rss_bytes", "server_rss_bytes"))
        yield (
            f"{last.num_answers:10,d} {answers / max(seconds, 1e-9):8,.0f} {1e6 * seconds / max(answers, 1):10,.0f} "
            f"{rss:5.0f} MiB {server_rss:7.0f} MiB"
        )
        first = last


def faults(output: Path, num_lines: int) -> Iterator[str]:
    """Yield a line for each kind of fault: lines without an answer, with several, and answers to other lines."""
    ids: Counter[str] = Counter()
    with output.open() as file:
        for text in file:
            answer = json.loads(text)
            ids[answer["custom_id"]] += 1
            if answer["response"]["status_code"] != 200:
                yield f"{answer['custom_id']}: status {answer['response']['status_code']}"
    expected = {f"q{i}" for i in range(num_lines)}
    for what, found in (
        ("without an answer", expected - ids.keys()),
        ("of no line", ids.keys() - expected),
        ("more than once", {name for name, number in ids.items() if number > 1}),
    ):
        if found:
            yield f"{len(found)} {what}: {', '.join(sorted(found)[:5])}"


@contextlib.contextmanager
def server_of(folder: Path, *, is_demo: bool) -> Iterator[tuple[str, int, str]]:
    """Start a server; yield its URL, process id and model."""
    if is_demo:
        with start_server() as server:
            yield server.url, server.process.pid, MODEL
        return
    write_tokenizer(folder)
    with running("count", folder) as fake:
        fake.wait_ready()
        yield fake.url, fake.process.pid, "m"


def main() -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.reliability.batch_kills")
    parser.add_argument("--lines", type=int, default=100_000, help="of the batch (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="number of kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: %(default)s)")
    parser.add_argument("--demo", action="store_true", help="the bundled model instead of a fake engine")
    arguments = parser.parse_args()
    kill_at = sorted(random.Random(arguments.seed).sample(range(arguments.lines), arguments.kills))
    with tempfile.TemporaryDirectory() as name, server_of(Path(name), is_demo=arguments.demo) as (url, pid, model):
        folder = Path(name)
        write_batch(folder / "in", model, arguments.lines)
        samples = run_with_kills(folder, url, pid, kill_at)
        sys.stdout.writelines(f"{row}\n" for row in report(samples, arguments.lines))
        found = list(faults(folder / "out", arguments.lines))
    sys.stdout.write(f"{arguments.lines:,} lines, {arguments.kills} kills after {kill_at} answers\n")
    sys.stdout.writelines(f"{fault}\n" for fault in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
