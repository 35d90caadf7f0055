"""`smoe serve --tensor-parallel-size 2`: the tokens of one process; ranks are killed under load and nothing is left."""

import asyncio
import random
import sys
from contextlib import suppress

import psutil

from tests.e2e.faults.test_recovery import answers_of, body_of, kill_under_load
from tests.support.conditions import until
from tests.support.forked.commands import run
from tests.support.servers.running import RunningServer, forked_server

NUM_STREAMS = 12
FLAGS = ("--dtype", "float32", "--threads", "1", "--max-num-seqs", "6", "--tensor-parallel-size", "2")


def _rank(server: RunningServer) -> psutil.Process:
    """Return the process of rank 1: the engine's child."""
    [rank] = [child for child in psutil.Process(server.engine_pid).children() if "engine.rank" in child.cmdline()]
    return rank


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_a_killed_rank_ends_streams_and_the_server_is_ready_again_without_what_was_before(
    server: RunningServer, scale: int
) -> None:
    """Each kill of either rank under load; the requests that are not cut have the tokens of one process."""
    bodies = [body_of(number, max_tokens=20 + 7 * (number % 9)) for number in range(NUM_STREAMS)]
    alone = [answer.token_ids for answer in asyncio.run(answers_of(server, bodies))]
    fingerprint = server.complete("a", max_tokens=1).json()["system_fingerprint"]
    chance, late_s = random.Random(0), []
    with forked_server(*FLAGS) as ranks:
        assert [answer.token_ids for answer in asyncio.run(answers_of(ranks, bodies))] == alone
        assert ranks.complete("a", max_tokens=1).json()["system_fingerprint"] == fingerprint
        for kill in range(2 * scale):
            processes = [psutil.Process(ranks.engine_pid), _rank(ranks)]
            victim = processes[1 - kill % 2].pid
            killed_s, answers = asyncio.run(kill_under_load(ranks, bodies, chance.randint(1, 150), victim))
            for answer, whole in zip(answers, alone, strict=True):
                assert answer.status == 200 and answer.has_one_end
                assert answer.token_ids == whole[: len(answer.token_ids)]
                assert answer.error is not None or len(answer.token_ids) == len(whole)
                late_s += [answer.ended_s - killed_s] if answer.error else []
            assert not any(map(_is_alive, processes)), "a process outlived its group"
        assert "rank 1 was killed by signal 9: the engine ends" in ranks.log.read_text()
        last = [psutil.Process(ranks.engine_pid), _rank(ranks)]
    asyncio.run(until(lambda: not any(map(_is_alive, last))))
    sys.stdout.write(f"{2 * scale} kills: {len(late_s)} streams cut, the last after {max(late_s, default=0):.2f} s\n")


def test_a_number_of_ranks_that_cannot_work_is_one_line() -> None:
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--device", "cpu", "--tensor-parallel-size", "4"]
    ran = run(command, timeout=300)
    assert ran.returncode == 2
    [line] = [line for line in ran.stderr.splitlines() if "--tensor-parallel-size" in line]
    assert line.endswith("the model has 2 KV heads, which 4 ranks cannot share equally; 1, 2 can"), line
