"""Answers that clients of Envoy get when a replica's network goes down: `python -m tests.measure.scale.fleet_link`.

Two servers with fake engines, one of them in a network namespace behind a veth pair, whose cable is then pulled. Needs
root and iproute2. Prints how new requests are answered, and how long a stream of the lost replica stays open.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.support.checkpoints.tokenizer_only import write_tokenizer
from tests.support.conditions import wait_until
from tests.support.hosts.envoy import REPLICA_HEADER, configuration, running_envoy
from tests.support.paths import FAKE_ENGINE_SERVER, ROOT
from tests.support.servers.server_process import LONG, running

NUM_REQUESTS = 100
PORT = 8000


@contextlib.contextmanager
def cable(name: str) -> Iterator[str]:
    """Lay a veth pair from here to a new network namespace; yield the other end's address."""
    here, there = f"{name}h", f"{name}t"
    net = f"10.{os.getpid() % 200 + 20}.7"
    ip("netns", "add", name)
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        ip("addr", "add", f"{net}.1/24", "dev", here)
        ip("link", "set", here, "up")
        for words in (f"addr add {net}.2/24 dev {there}", f"link set {there} up", "link set lo up"):
            ip("-n", name, *words.split())
        yield f"{net}.2"
    finally:
        subprocess.run(["ip", "netns", "del", name])


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def server_in(name: str, address: str, checkpoint: Path) -> Iterator[None]:
    """Run a server in the namespace."""
    flags = {"model": str(checkpoint), "host": address, "port": str(PORT), "served_model_name": "m"}
    program = [
        sys.executable,
        "-P",
        str(FAKE_ENGINE_SERVER),
        "hold",
        *(f"{key}={value}" for key, value in flags.items()),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        ["ip", "netns", "exec", name, *program], env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_until(lambda: answers(f"http://{address}:{PORT}/health"))
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, timeout=1).status_code == 200
    return False


def measure(client: httpx.Client, lost: str, pull: list[str]) -> None:
    """Open connections and a stream to the replica, pull its cable, and send requests."""
    with contextlib.ExitStack() as stack:
        for number in range(64):
            stream = stack.enter_context(client.stream("POST", "/v1/completions", json=LONG, headers=session(number)))
            if stream.headers[REPLICA_HEADER].startswith(lost):
                break
        for number in range(64):
            client.get("/version", headers=session(number))  # leaves idle connections to both
        ip(*pull)
        pulled_s = time.monotonic()
        took: list[tuple[float, int]] = []
        for number in range(NUM_REQUESTS):
            begun_s = time.monotonic()
            status = client.get("/version", headers=session(number)).status_code
            took.append((time.monotonic() - begun_s, status))
        print(f"statuses: {dict(Counter(status for _, status in took))}, longest: {max(took)[0]:.2f} s")  # noqa: T201
        with contextlib.suppress(httpx.TransportError):
            for _ in stream.iter_raw():
                pass
        print(f"the stream of the lost replica ended {time.monotonic() - pulled_s:.1f} s after the cable was pulled")  # noqa: T201


def session(number: int) -> dict[str, str]:
    return {"x-session-id": f"session {number}"}


def main() -> None:
    """Entry point."""
    name = f"smoe{os.getpid()}"
    with contextlib.ExitStack() as stack:
        checkpoint = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_tokenizer(checkpoint)
        address = stack.enter_context(cable(name))
        stack.enter_context(server_in(name, address, checkpoint))
        here = stack.enter_context(running("count", checkpoint))
        here.wait_ready()
        replicas = [f"{address}:{PORT}", here.url.removeprefix("http://")]
        proxy = stack.enter_context(running_envoy(configuration("envoy.yaml", replicas)))
        with httpx.Client(base_url=proxy.url, timeout=60) as client:
            measure(client, address, ["link", "set", f"{name}h", "down"])


if __name__ == "__main__":
    main()
