"""python -m tests.measure.reliability.rank_kills [--kills N] [--streams N] [--hosts]

Kill a rank of a server with two ranks again and again while streams run: in turns rank 1 and the engine process, which
is rank 0. With --hosts the ranks are on two hosts, which are both this machine. Print how late the streams of a dead
rank ended, whether all others have the tokens of one process, and whether a process is left. Exit code 1 if not.
"""

import argparse
import asyncio
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from tests.e2e.faults.test_recovery import Answer, answers_of, body_of, kill_under_load
from tests.support.conditions import until
from tests.support.hosts.two_hosts import two_hosts
from tests.support.servers.running import RunningServer, start_server

FLAGS = ("--dtype", "float32", "--threads", "1", "--max-num-seqs", "6")
Pids = Callable[[], list[int]]
NUM_RANKS = 2


@dataclass
class Ledger:
    """Ends of streams, and times of the kills."""

    late_s: list[float] = field(default_factory=list)  # ends of the streams that were cut, after the kill
    num_same: int = 0  # complete answers with the tokens of one process
    faults: list[str] = field(default_factory=list)

    def add(self, answers: list[Answer], alone: list[list[int]], killed_s: float) -> None:
        """Count the answers of one kill."""
        for number, (answer, whole) in enumerate(zip(answers, alone, strict=True)):
            if answer.status != 200 or not answer.has_one_end:
                self.faults.append(f"stream {number} has no end")
            elif answer.token_ids != whole[: len(answer.token_ids)]:
                self.faults.append(f"stream {number} has other tokens")
            elif answer.error is not None:
                self.late_s.append(answer.ended_s - killed_s)
            elif len(answer.token_ids) < len(whole):
                self.faults.append(f"stream {number} is not complete")
            else:
                self.num_same += 1


@contextmanager
def server_with_ranks(*, on_hosts: bool) -> Iterator[tuple[RunningServer, Pids]]:
    """Start a server; also return what lists the process ids of its ranks, the first one last."""
    if on_hosts:
        with two_hosts(*FLAGS) as (server, host):
            yield server, lambda: [host.rank_pid, server.engine_pid]
    else:
        with start_server(*FLAGS, "--tensor-parallel-size", "2") as server:
            yield server, lambda: [*_ranks_of(server.engine_pid), server.engine_pid]


def _ranks_of(engine_pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(engine_pid).children() if "engine.rank" in child.cmdline()]


def run(num_kills: int, num_streams: int, *, on_hosts: bool) -> Ledger:
    """Kill and count."""
    bodies = [body_of(number, max_tokens=20 + 7 * (number % 9)) for number in range(num_streams)]
    with start_server(*FLAGS) as one:
        alone = [answer.token_ids for answer in asyncio.run(answers_of(one, bodies))]
    ledger, chance = Ledger(), random.Random(0)
    with server_with_ranks(on_hosts=on_hosts) as (server, pids):
        for kill in range(num_kills):
            before = pids()
            victim = before[kill % 2]
            killed_s, answers = asyncio.run(kill_under_load(server, bodies, chance.randint(1, 300), victim))
            ledger.add(answers, alone, killed_s)
            asyncio.run(until(lambda: len(pids()) == NUM_RANKS))
            ledger.faults += [f"process {pid} outlived its group" for pid in before if psutil.pid_exists(pid)]
        last = pids()
    asyncio.run(until(lambda: not any(map(psutil.pid_exists, last))))
    return ledger


def main() -> int:
    """Print the ledger."""
    parser = argparse.ArgumentParser(prog="python -m tests.measure.reliability.rank_kills")
    parser.add_argument("--kills", type=int, default=20, help="number of kills (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=24, help="under each kill (default: %(default)s)")
    parser.add_argument("--hosts", action="store_true", help="two hosts, which are both this machine")
    arguments = parser.parse_args()
    ledger = run(arguments.kills, arguments.streams, on_hosts=arguments.hosts)
    late_s = sorted(ledger.late_s) or [0.0]
    sys.stdout.write(
        f"{arguments.kills} kills under {arguments.streams} streams: {len(ledger.late_s)} cut, the last "
        f"{late_s[-1]:.2f} s after the kill (median {late_s[len(late_s) // 2]:.2f} s); {ledger.num_same} complete with "
        f"the tokens of one process; {len(ledger.faults)} faults\n"
    )
    sys.stdout.writelines(f"{fault}\n" for fault in ledger.faults)
    return 1 if ledger.faults else 0


if __name__ == "__main__":
    sys.exit(main())
