"""Measure the replies to the catalogue by a running server: python -m tests.e2e.bad_inputs http://127.0.0.1:8000

Prints the latency of the replies, the slowest ones, and the latency of /health/live meanwhile: the event loop's lag.
"""

import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator

import httpx

from tests.e2e.bad_inputs import ROWS
from tests.e2e.bad_inputs.raw import RAW
from tests.e2e.bad_inputs.rows import EVERYWHERE, bodies

JSON = {"content-type": "application/json"}


def catalogue() -> Iterator[tuple[str, str, bytes]]:
    """Yield the row, path and body of every case."""
    for name, row in ROWS.items():
        for endpoint, (change, _, _) in itertools.product(row.endpoints, row.cases):
            for body in bodies(endpoint, change):
                yield name, endpoint.path, json.dumps(body).encode()
    for (name, cases), endpoint in itertools.product(RAW.items(), EVERYWHERE):
        for content, _ in cases:
            yield name, endpoint.path, content


class HealthWatch:
    """Requests /health/live every 2 ms in a separate thread."""

    def __init__(self, url: str) -> None:
        self.seconds: list[float] = []
        self._url = url
        self._is_over = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self._url) as client:
            while not self._is_over.wait(0.002):
                start = time.perf_counter()
                client.get("/health/live")
                self.seconds.append(time.perf_counter() - start)

    def stop(self) -> None:
        self._is_over.set()


def summary(name: str, seconds: list[float]) -> str:
    ordered = sorted(seconds)
    p50, p99, longest = (1e3 * ordered[at] for at in (len(ordered) // 2, len(ordered) * 99 // 100, -1))
    return f"{name}: {len(ordered):,}; p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {longest:.1f} ms"


def main(url: str) -> None:
    taken: list[tuple[float, str, str, int]] = []
    watch = HealthWatch(url)
    thread = threading.Thread(target=watch.run)
    thread.start()
    with httpx.Client(base_url=url, timeout=60) as client:
        for row, path, content in catalogue():
            start = time.perf_counter()
            status = client.post(path, content=content, headers=JSON).status_code
            taken.append((time.perf_counter() - start, row, path, status))
    watch.stop()
    thread.join()
    slowest = sorted(taken, reverse=True)[:10]
    lines = [
        summary("bad inputs", [seconds for seconds, *_ in taken]),
        summary("/health/live meanwhile", watch.seconds),
        f"replies without a 4xx: {sum(not 400 <= status < 500 for *_, status in taken)}",
        *(f"{seconds * 1e3:8.1f} ms  {status}  {path}  {row}" for seconds, row, path, status in slowest),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


main(sys.argv[1])
