"""python -m tests.measure.fleet_cost [--model MODEL] [--rounds N] [--clients N] [--requests N]

Measure what Envoy costs: the same load on one server, directly and through Envoy with deploy/envoy/envoy.yaml, in
turns. Print tokens per second and the median time to the first token of each run, then the median of the ratios. The
bundled model is so small that server, Envoy and clients compete for the cores. For a machine without other load; about
two minutes.
"""

import argparse
import json
import statistics
import subprocess
import sys
from typing import Any

from tests.support.envoy import configuration, running_envoy
from tests.support.running import start_server


def load(url: str, num_clients: int, num_requests: int) -> dict[str, Any]:
    """Return the figures of a closed loop on `url`."""
    options = ("--clients", str(num_clients), "--requests", str(num_requests), "--output-tokens", "64", "--json")
    command = [sys.executable, "-m", "server", "bench", "serve", url, *options]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    [run] = json.loads(result.stdout)["runs"]
    assert not run["errors"], run["error_messages"]
    figures: dict[str, Any] = run
    return figures


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the bundled model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=128)
    options = parser.parse_args()
    ratios, delays_s = [], []
    with start_server(model=options.model) as server:
        config = configuration("envoy.yaml", [server.url.removeprefix("http://")])
        with running_envoy(config) as proxy:
            urls = {"direct": server.url, "through Envoy": proxy.url}
            for number in range(options.rounds):
                names = list(urls) if number % 2 else list(urls)[::-1]
                runs = {name: load(urls[name], options.clients, options.requests) for name in names}
                for name, run in runs.items():
                    speed, ttft_ms = run["output_tokens_per_s"], 1e3 * run["ttft_s"]["p50"]
                    print(f"{name:<14}{speed:9.0f} tokens/s, first token {ttft_ms:7.1f} ms", flush=True)  # noqa: T201
                direct, proxied = runs["direct"], runs["through Envoy"]
                ratios.append(proxied["output_tokens_per_s"] / direct["output_tokens_per_s"])
                delays_s.append(proxied["ttft_s"]["p50"] - direct["ttft_s"]["p50"])
    ratio, delay_ms = statistics.median(ratios), 1e3 * statistics.median(delays_s)
    print(f"median: {ratio:.1%} of the direct throughput, first token {delay_ms:+.1f} ms")  # noqa: T201


if __name__ == "__main__":
    main()
