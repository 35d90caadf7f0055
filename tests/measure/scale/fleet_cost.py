"""python -m tests.measure.scale.fleet_cost [--model MODEL] [--rounds N] [--clients N] [--requests N] [--threads N]
       [--prompt-tokens N,M] [--output-tokens N,M]

Measure what Envoy costs: the same load on one server, directly and through Envoy with deploy/envoy/envoy.yaml, in
turns. Print tokens per second and the median time to the first token of each run, then the median of the ratios; and,
from Envoy's access log, how long a request and the first byte of its response were inside Envoy. What first tokens lose
beyond these two is not Envoy's work but waiting: for a core, or for the engine's next step. `--threads 1` leaves a core
of two to all but the engine. Answers of one length end in the same step, so that all clients ask again at once, and
which of them the next step finds decides its size and all first tokens: `--output-tokens 32,96` keeps them apart. A
first token waits for the end of a step, which moves it by more than Envoy does: short prompts, short steps and some
thousand requests show the difference, whose standard error over the rounds is printed. The bundled model is so small
that server, Envoy and clients compete for the cores. For a machine without other load; about two minutes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.conditions import wait_until
from tests.support.hosts.envoy import Config, configuration, manager_of, running_envoy
from tests.support.servers.running import start_server

# In microseconds: the request's first byte until it leaves for the server; the response's first byte likewise; the
# request's last byte until the response's first, which is the server's time.
DURATIONS = ("DS_RX_BEG:US_TX_BEG", "US_RX_BEG:DS_TX_BEG", "US_TX_END:US_RX_BEG")


def with_log(config: Config, path: Path) -> Config:
    """Let Envoy write the durations of each request."""
    line = " ".join(f"%COMMON_DURATION({points}:us)%" for points in DURATIONS)
    kind = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
    log_format = {"text_format_source": {"inline_string": f"{line}\n"}}
    typed = {"@type": kind, "path": str(path), "log_format": log_format}
    manager_of(config)["access_log"] = [{"name": "envoy.access_loggers.file", "typed_config": typed}]
    return config


def load(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a closed loop on `url`."""
    loop = ("--clients", str(options.clients), "--requests", str(options.requests))
    command = [sys.executable, "-m", "server", "bench", "serve", url, *loop]
    command += ["--prompt-tokens", options.prompt_tokens, "--output-tokens", options.output_tokens, "--json"]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    [run] = json.loads(result.stdout)["runs"]
    assert not run["errors"], run["error_messages"]
    figures: dict[str, Any] = run
    return figures


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def say_inside(log: Path, num_requests: int) -> None:
    """Print the medians of Envoy's own times once its log, which it writes every 10 s, is complete."""
    wait_until(lambda: len(_completions(log)) >= num_requests)
    into, out_of, server = (statistics.median(times) for times in zip(*_completions(log), strict=True))
    say(f"inside Envoy: request {into:.0f} us, first byte of the response {out_of:.0f} us; server {server:.0f} us")


def _completions(log: Path) -> list[list[int]]:
    lines = [line.split() for line in log.read_text().splitlines()]
    return [list(map(int, times)) for times in lines if len(times) == len(DURATIONS) and "-" not in times]


def measure(url: str, proxy_url: str, options: argparse.Namespace) -> None:
    """Load the server directly and through Envoy in turns."""
    ratios, delays_s = [], []
    urls = {"direct": url, "through Envoy": proxy_url}
    for number in range(options.rounds):
        names = list(urls) if number % 2 else list(urls)[::-1]
        runs = {name: load(urls[name], options) for name in names}
        for name, run in runs.items():
            speed, ttft_ms = run["output_tokens_per_s"], 1e3 * run["ttft_s"]["p50"]
            say(f"{name:<14}{speed:9.0f} tokens/s, first token {ttft_ms:7.1f} ms")
        direct, proxied = runs["direct"], runs["through Envoy"]
        ratios.append(proxied["output_tokens_per_s"] / direct["output_tokens_per_s"])
        delays_s.append(proxied["ttft_s"]["p50"] - direct["ttft_s"]["p50"])
    ratio, delay_ms = statistics.median(ratios), 1e3 * statistics.median(delays_s)
    error_ms = 1e3 * statistics.stdev(delays_s) / len(delays_s) ** 0.5
    mean_ms = 1e3 * statistics.fmean(delays_s)
    say(f"median: {ratio:.1%} of the direct throughput, first token {delay_ms:+.1f} ms")
    say(f"mean of the rounds: first token {mean_ms:+.2f} +- {error_ms:.2f} ms")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the bundled model")
    parser.add_argument("--rounds", type=int, default=5, help="two or more")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--prompt-tokens", default="16,256", help="of each prompt, or a range")
    parser.add_argument("--output-tokens", default="64", help="of each answer, or a range")
    parser.add_argument("--threads", type=int, help="of the server (default: all cores)")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: an error needs two or more")
    flags = [] if options.threads is None else ["--threads", str(options.threads)]
    with tempfile.TemporaryDirectory() as folder, start_server(*flags, model=options.model) as server:
        log = Path(folder) / "access.log"
        config = with_log(configuration("envoy.yaml", [server.url.removeprefix("http://")]), log)
        with running_envoy(config) as proxy:
            measure(server.url, proxy.url, options)
            say_inside(log, options.rounds * options.requests)


if __name__ == "__main__":
    main()
