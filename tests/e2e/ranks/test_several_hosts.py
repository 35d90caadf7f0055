"""`smoe serve --nnodes 2` and torchrun: the tokens of one process; a rank is killed under load and all go on."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.faults.test_recovery import Answer, Progress, ask, body_of, client_of, health
from tests.support.conditions import until
from tests.support.hosts.two_hosts import forked_two_hosts
from tests.support.ports import free_port
from tests.support.servers.running import STOP_TIMEOUT_S, RunningServer, forked_server, wait_until_ready

NUM_STREAMS = 8
FLAGS = ("--dtype", "float32", "--threads", "1", "--max-num-seqs", "4")


@pytest.fixture(scope="module")
def bodies() -> list[dict[str, object]]:
    return [body_of(number, max_tokens=20 + 7 * (number % 5)) for number in range(NUM_STREAMS)]


@pytest.fixture(scope="module")
def alone(bodies: list[dict[str, object]]) -> list[list[int]]:
    """The tokens of each request from one process."""
    with forked_server(*FLAGS) as server:
        return _tokens(server, bodies)


def _tokens(server: RunningServer, bodies: list[dict[str, object]]) -> list[list[int]]:
    async def answers() -> list[Answer]:
        async with client_of(server) as client:
            return await asyncio.gather(*(ask(client, body) for body in bodies))

    return [answer.token_ids for answer in asyncio.run(answers())]


async def _kill_under_load(
    server: RunningServer, bodies: list[dict[str, object]], num_tokens: int, victim: int
) -> list[Answer]:
    """Kill a process after `num_tokens` tokens; return what became of the requests, when the server is ready again."""
    async with client_of(server) as client:
        progress = Progress(num_tokens)
        streams = [asyncio.create_task(ask(client, body, progress)) for body in bodies]
        await progress.reached.wait()
        os.kill(victim, signal.SIGKILL)
        await health(client, 503)
        answers = await asyncio.gather(*streams)
        await health(client, 200)
        return answers


def test_two_hosts_give_the_tokens_of_one_and_go_on_after_a_kill_on_either(
    bodies: list[dict[str, object]], alone: list[list[int]], scale: int
) -> None:
    chance = random.Random(0)
    with forked_two_hosts(*FLAGS) as (server, host):
        assert _tokens(server, bodies) == alone
        assert httpx.get(f"{host.url}/health/live").json()["phase"] == "ready"
        assert httpx.get(f"{host.url}/v1/models").status_code == 404
        for each in (server, host):
            each.process.send_signal(signal.SIGHUP)
            asyncio.run(until(lambda each=each: "SIGHUP is ignored" in each.log.read_text()))  # type: ignore[misc]
        for kill in range(2 * scale):
            victim = host.rank_pid if kill % 2 == 0 else server.engine_pid
            answers = asyncio.run(_kill_under_load(server, bodies, chance.randint(1, 60), victim))
            for answer, whole in zip(answers, alone, strict=True):
                assert answer.status == 200 and answer.has_one_end
                assert answer.token_ids == whole[: len(answer.token_ids)]
                assert answer.error is not None or len(answer.token_ids) == len(whole)
            asyncio.run(until(lambda: httpx.get(f"{host.url}/health/ready").status_code == 200))
        assert _tokens(server, bodies) == alone


@contextmanager
def _torchrun(port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start two processes on this host; stop them by SIGTERM, which torchrun passes on."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command = [*launcher, "--master-port", str(free_port()), "-m", "server", "serve", "--port", str(port), *FLAGS]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def test_torchrun_starts_a_group_that_gives_the_tokens_of_one(
    bodies: list[dict[str, object]], alone: list[list[int]], tmp_path: Path
) -> None:
    port, log = free_port(), tmp_path / "log"
    with _torchrun(port, log) as process:
        server = RunningServer(process, f"http://127.0.0.1:{port}", log)
        wait_until_ready(server)
        assert _tokens(server, bodies) == alone
