"""python -m tests.measure.reliability.memory_cgroups [--runs N] [--gib 0.6 1 2] [--json FILE]

Serve the bundled model in memory cgroups of several sizes and send requests with the maximum of every field at once,
many at a time, beside bodies that never end. Reports per cgroup: the answers, the kernel's kills, the most memory used.
Where no cgroup can be made, it says so and measures nothing.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.measure.reliability.attack_shapes import (
    BIASES,
    NUM_IDS,
    STOPS,
    WORDS,
    chat,
    completion,
    post,
    prompts,
    turns,
)
from tests.measure.reliability.attacks import connect
from tests.support.servers.running import RunningServer, start_server

GIB = 1 << 30
NUM_CLIENTS = 32
NUM_SLOW = 60
ANSWER_S = 300.0


class NoCgroups(Exception):
    """Memory cgroups cannot be made here. The message says why."""


class MemoryCgroup:
    """A cgroup below this process's own, of version 1 or 2."""

    def __init__(self, limit_bytes: int) -> None:
        """Make it. Raises NoCgroups."""
        version_1 = Path("/sys/fs/cgroup/memory")
        self._is_version_1 = version_1.is_dir()
        top = version_1 if self._is_version_1 else Path("/sys/fs/cgroup")
        controller = "memory" if self._is_version_1 else ""
        lines = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
        own = next((path for _, names, path in lines if controller in names.split(",")), "/")
        parents = [top / own.lstrip("/"), top]
        parent = next((folder for folder in parents if folder.is_dir()), top)
        self._folder = parent / f"smoe-measure-{os.getpid()}-{limit_bytes}"
        limits = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if self._is_version_1 else ("memory.max",)
        try:
            self._folder.mkdir()
            for name in limits:
                if name == limits[0] or (self._folder / name).exists():
                    (self._folder / name).write_text(str(limit_bytes))
            if not self._is_version_1:
                with contextlib.suppress(OSError):
                    (self._folder / "memory.swap.max").write_text("0")
        except OSError as error:
            with contextlib.suppress(OSError):
                self._folder.rmdir()
            raise NoCgroups(f"{self._folder}: {error.strerror}") from None

    def enter(self) -> None:
        """Move this process into it."""
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def num_kills(self) -> int:
        """Processes that the kernel killed here for lack of memory."""
        text = (self._folder / ("memory.oom_control" if self._is_version_1 else "memory.events")).read_text()
        return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))

    @property
    def peak_bytes(self) -> int:
        name = "memory.max_usage_in_bytes" if self._is_version_1 else "memory.peak"
        return int((self._folder / name).read_text())

    def remove(self) -> None:
        """Remove it; its processes must have ended."""
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError):
                self._folder.rmdir()
                return
            time.sleep(0.1)


# Each token of a text reaches new states of the lexer, up to its limit.
GREEDY = {"regex": r"(.*[\p{Lu}].{12})+"}
GREEDY_SCHEMA = {
    "type": "object",
    "properties": {f"p{i}": {"type": "string", "pattern": "^(.*[ae].{14})+$"} for i in range(99)},
}


def largest_requests() -> list[bytes]:
    """Return requests that have the maximum of every field, as far as fields go together."""
    constrained = {"logit_bias": BIASES, "bad_words": WORDS, "stop": STOPS, "stop_token_ids": list(range(256))}
    allowed = {"allowed_token_ids": list(range(3, NUM_IDS))}
    filler = "y" * 900_000
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", completion(**constrained, **allowed, n=8, max_tokens=1900, prompt=prompts(4, 100))),
        ("/v1/completions", completion(prompt=prompts(128, 3), n=8, max_tokens=97, logprobs=4)),
        ("/v1/completions", completion(prompt=prompts(12, 1900), echo=True, logprobs=20, max_tokens=20)),
        ("/v1/completions", completion(prompt=[7] * 400_000)),
        ("/v1/completions", completion(prompt=filler)),
        ("/v1/completions", completion(x=[[] for _ in range(99_000)])),
        ("/v1/completions", completion(x=[{} for _ in range(99_000)], y=filler[:600_000])),
        ("/v1/chat/completions", chat(messages=turns(9999), n=8, logprobs=True, top_logprobs=20)),
        ("/v1/chat/completions", chat(n=8, logprobs=True, top_logprobs=20, max_tokens=1900, expert_usage=True)),
        ("/v1/completions", completion(n=8, expert_routing=True, logprobs=20, max_tokens=1900)),
        ("/v1/completions", completion(n=8, stream=True, logprobs=20, max_tokens=1900)),
        ("/v1/completions", completion(n=8, max_tokens=1900, structured_outputs=GREEDY)),
        ("/v1/completions", completion(n=8, max_tokens=1900, structured_outputs={"json": GREEDY_SCHEMA})),
        ("/tokenize", {"model": "smoe-demo", "prompt": "truth " * 160_000, "return_token_strs": True}),
        ("/detokenize", {"model": "smoe-demo", "tokens": [500] * 250_000}),
    ]
    return [post(path, body) for path, body in bodies]


async def send(url: str, request: bytes, statuses: Counter[str]) -> None:
    """Count the request's status. A 200 that is cut counts as cut; what follows a refusal does not matter."""
    status = ""
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await connect(url)
            try:
                writer.write(request)
                await writer.drain()
                head = await reader.read(1 << 16)
                status = head[9:12].decode() or "closed"
                while await reader.read(1 << 20):
                    pass
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError) as error:
        if status in ("", "200"):
            status = f"{status} {type(error).__name__}".strip()
    statuses[status] += 1


async def send_all(url: str, num_runs: int) -> Counter[str]:
    """Send `num_runs` requests from NUM_CLIENTS clients, beside NUM_SLOW bodies that never end."""
    statuses: Counter[str] = Counter()
    kinds, runs = largest_requests(), iter(range(num_runs))

    async def client() -> None:
        for number in runs:
            await send(url, kinds[number % len(kinds)], statuses)

    async def slow() -> None:
        request = post("/v1/completions", completion(x="y" * ((1 << 20) - 300)))[:-1]
        while True:
            with contextlib.suppress(OSError, TimeoutError):
                reader, writer = await connect(url)
                writer.write(request)
                await asyncio.wait_for(reader.read(), 30)
                writer.transport.abort()
            await asyncio.sleep(0.1)

    holding = [asyncio.ensure_future(slow()) for _ in range(NUM_SLOW)]
    await asyncio.gather(*(client() for _ in range(NUM_CLIENTS)))
    for task in holding:
        task.cancel()
    await asyncio.gather(*holding, return_exceptions=True)
    return statuses


def measure(gib: float, num_runs: int) -> dict[str, Any]:
    """Measure one size. Raises NoCgroups."""
    cgroup = MemoryCgroup(int(gib * GIB))
    try:
        with _server_in(cgroup) as server:
            statuses = asyncio.run(send_all(server.url, num_runs))
            is_alive = server.process.poll() is None
            restarts = server.log.read_text().count("the next process starts in")
            row = {"peak_mib": cgroup.peak_bytes >> 20, "kills": cgroup.num_kills, "engine_restarts": restarts}
    finally:
        cgroup.remove()
    return {"gib": gib, "runs": num_runs, "server_alive": is_alive, **row, "answers": dict(statuses)}


@contextlib.contextmanager
def _server_in(cgroup: MemoryCgroup) -> Iterator[RunningServer]:
    with start_server(preexec_fn=cgroup.enter) as server:
        yield server


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="requests per cgroup")
    parser.add_argument("--gib", type=float, nargs="+", default=[0.6, 1.0, 2.0], help="sizes of the cgroups")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    rows = []
    try:
        for gib in options.gib:
            rows.append(measure(gib, options.runs))
            sys.stdout.write(json.dumps(rows[-1]) + "\n")
            sys.stdout.flush()
    except NoCgroups as error:
        sys.stdout.write(f"no memory cgroup can be made here ({error}): nothing was measured\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
