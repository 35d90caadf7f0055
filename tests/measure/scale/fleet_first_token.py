"""python -m tests.measure.scale.fleet_first_token [--requests N]

Measure what Envoy with deploy/envoy/envoy.yaml adds to the first token where no engine uses the cores: the server has a
stand-in for the engine that answers at once, and one client sends requests directly and through Envoy in turns. Print
quantiles over connections that are kept and over a new one for each request. Beside `tests.measure.scale.fleet_cost`,
whose engine competes with Envoy for the cores, it says how much of the delay is Envoy's work. Half a minute.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import httpx

from tests.support.checkpoints.tokenizer_only import write_tokenizer
from tests.support.hosts.envoy import configuration, running_envoy
from tests.support.servers.server_process import running

BODY = {"model": "m", "prompt": "a b c", "max_tokens": 4, "stream": True}
QUANTILES = (0.05, 0.25, 0.5, 0.75)


def first_token_s(client: httpx.Client) -> float:
    """Return the seconds until the first bytes of a stream, which is then read to its end."""
    begun_s = time.perf_counter()
    with client.stream("POST", "/v1/completions", json=BODY) as response:
        assert response.status_code == 200
        chunks = response.iter_raw()
        next(chunks)
        seconds = time.perf_counter() - begun_s
        for _ in chunks:
            pass
    return seconds


def measure(urls: dict[str, str], keeps_connections: bool, count: int) -> None:
    """Send requests in turns and print the quantiles."""
    limits = httpx.Limits(max_keepalive_connections=None if keeps_connections else 0)
    times: dict[str, list[float]] = {name: [] for name in urls}
    with contextlib.ExitStack() as stack:
        clients = {
            name: stack.enter_context(httpx.Client(base_url=url, limits=limits, timeout=60))
            for name, url in urls.items()
        }
        for number in range(count):
            for name in list(urls) if number % 2 else list(urls)[::-1]:
                times[name].append(first_token_s(clients[name]))
    say("connections that are kept" if keeps_connections else "a new connection for each request")
    for name, seconds in times.items():
        found = [(100 * q, 1e3 * sorted(seconds)[int(len(seconds) * q)]) for q in QUANTILES]
        say(f"  {name:<14}" + "".join(f"  p{percent:.0f} {ms:.2f} ms" for percent, ms in found))


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.scale.fleet_first_token")
    parser.add_argument("--requests", type=int, default=400)
    count = parser.parse_args().requests
    with contextlib.ExitStack() as stack:
        checkpoint = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_tokenizer(checkpoint)
        server = stack.enter_context(running("count", checkpoint))
        server.wait_ready()
        config = configuration("envoy.yaml", [server.url.removeprefix("http://")])
        proxy = stack.enter_context(running_envoy(config))
        for keeps_connections in (True, False):
            measure({"direct": server.url, "through Envoy": proxy.url}, keeps_connections, count)


if __name__ == "__main__":
    main()
