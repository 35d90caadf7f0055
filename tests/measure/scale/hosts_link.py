"""python -m tests.measure.scale.hosts_link [--group-timeout S]

Two hosts with a rank each, of which the second is in a network namespace behind a veth pair. Needs root and iproute2.
Print whether they give the tokens of one process, what happens while nothing is to do for five times the timeout, and
how long clients wait when a rank is stopped, and when the cable is pulled.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable

from tests.e2e.faults.test_recovery import Answer, Progress, ask, body_of, client_of, health
from tests.measure.scale.fleet_link import cable, ip
from tests.support.hosts.two_hosts import start_host
from tests.support.ports import free_port
from tests.support.servers.running import RunningServer, start_server

FLAGS = ("--dtype", "float32", "--threads", "1", "--max-num-seqs", "8")
NUM_STREAMS = 8


async def answers_of(server: RunningServer, bodies: list[dict[str, object]]) -> list[Answer]:
    """Send all requests at once."""
    async with client_of(server) as client:
        return await asyncio.gather(*(ask(client, body) for body in bodies))


async def break_under_load(
    server: RunningServer, bodies: list[dict[str, object]], break_it: Callable[[], None], heal: Callable[[], None]
) -> tuple[float, float, float]:
    """Break something while streams run; return the seconds until 503, until the last stream has ended, and from the
    repair until the server is ready."""
    async with client_of(server) as client:
        progress = Progress(NUM_STREAMS * 3)
        streams = [asyncio.create_task(ask(client, body, progress)) for body in bodies]
        await progress.reached.wait()
        begun_s = time.monotonic()
        break_it()
        await health(client, 503)
        unavailable_s = time.monotonic() - begun_s
        answers = await asyncio.gather(*streams)
        ended_s = max(answer.ended_s for answer in answers) - begun_s
        heal()
        healed_s = time.monotonic()
        await health(client, 200)
        return unavailable_s, ended_s, time.monotonic() - healed_s


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def measure(name: str, there: str, timeout_s: float) -> None:
    """Run both hosts and break them."""
    bodies = [body_of(number, max_tokens=200) for number in range(NUM_STREAMS)]
    with start_server(*FLAGS) as one:
        alone = [answer.token_ids for answer in asyncio.run(answers_of(one, bodies))]
    here = f"{there.rpartition('.')[0]}.1"
    group = ["--tensor-parallel-size", "2", "--nnodes", "2", "--master-addr", here]
    group += ["--master-port", str(free_port()), "--group-timeout", str(timeout_s), *FLAGS]
    enter = ("ip", "netns", "exec", name)
    with (
        start_host(*group, "--node-rank", "1", address=there, prefix=enter) as host,
        start_server(*group) as server,
    ):
        same = [answer.token_ids for answer in asyncio.run(answers_of(server, bodies))] == alone
        say(f"the tokens of one process: {same}")
        time.sleep(5 * timeout_s)
        say(f"restarts in {5 * timeout_s:g} s without work: {restarts(server):g}")
        rank = host.rank_pid
        times = asyncio.run(
            break_under_load(
                server, bodies, lambda: os.kill(rank, signal.SIGSTOP), lambda: os.kill(rank, signal.SIGCONT)
            )
        )
        report("rank 1 stopped", times)
        link = f"{name}h"
        times = asyncio.run(
            break_under_load(
                server, bodies, lambda: ip("link", "set", link, "down"), lambda: ip("link", "set", link, "up")
            )
        )
        report("cable pulled", times)
        ip("link", "set", link, "down")
        begun_s = time.monotonic()
        asyncio.run(until_unavailable(server))
        say(f"cable pulled without work: noticed after {time.monotonic() - begun_s:.1f} s")
        ip("link", "set", link, "up")
        asyncio.run(until_ready(server))
        same = [answer.token_ids for answer in asyncio.run(answers_of(server, bodies))] == alone
        say(f"the tokens of one process afterwards: {same}; restarts in all: {restarts(server):g}")


def restarts(server: RunningServer) -> float:
    return server.settled_metrics()["smoe_engine_restarts_total", ()]


def report(what: str, times: tuple[float, float, float]) -> None:
    unavailable_s, ended_s, ready_s = times
    say(
        f"{what}: 503 after {unavailable_s:.1f} s, streams end after {ended_s:.1f} s, "
        f"ready {ready_s:.1f} s after the repair"
    )


async def until_unavailable(server: RunningServer) -> None:
    async with client_of(server) as client:
        await health(client, 503)


async def until_ready(server: RunningServer) -> None:
    async with client_of(server) as client:
        await health(client, 200)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.scale.hosts_link")
    parser.add_argument("--group-timeout", type=float, default=20.0, help="seconds (default: %(default)s)")
    name = f"smoe{os.getpid()}"
    with cable(name) as there:
        measure(name, there, parser.parse_args().group_timeout)


if __name__ == "__main__":
    main()
