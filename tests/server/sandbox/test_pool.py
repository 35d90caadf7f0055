"""server/sandbox/pool.py with real processes: what a job does to its own process stays in it, and has a name.

Jobs that must end by a limit get a small one; jobs that must be in progress stop themselves or spin without an end.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.sandbox import pool as pool_module
from server.sandbox.errors import (
    Crashed,
    JobFailed,
    Killed,
    RanOutOfMemory,
    SandboxError,
    SandboxFull,
    TookTooLong,
)
from server.sandbox.fork_server import ForkServer
from server.sandbox.job import Job, JobUse, Limits
from server.sandbox.messages import Command, Fork
from server.sandbox.pool import SandboxPool
from tests.support.conditions import until
from tests.support.servers import sandbox_jobs as jobs
from tests.support.servers.child_processes import state_of

pytestmark = pytest.mark.anyio

SHORT = Limits(cpu_s=0.05)
ENDLESS = Limits(cpu_s=3600)
ADD = Job(jobs.add, (1, 2), int)


def job(function: Callable[..., int], *args: object, limits: Limits = ENDLESS) -> Job[int]:
    return Job(function, args, int, limits=limits)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (job(jobs.spin, limits=SHORT), TookTooLong),
        (job(jobs.allocate, 1 << 30), RanOutOfMemory),
        (job(jobs.abort_for_lack_of_memory), RanOutOfMemory),
        (job(jobs.abort), Crashed),
        (job(jobs.leave, 3), Crashed),
        (job(jobs.fail, "no"), JobFailed),
        (job(jobs.kill_self), Killed),
        (Job(jobs.wrong, (), int), Crashed),
    ],
)
async def test_each_way_to_fail_has_its_error_and_the_next_job_runs(
    pool: SandboxPool, bad: Job[int], error: type[SandboxError]
) -> None:
    for _ in range(3):  # more than there are workers
        with pytest.raises(error):
            await pool.run(bad)
    assert await pool.run(ADD) == 3


async def test_memory_below_the_limit_is_granted_to_every_job(pool: SandboxPool) -> None:
    small = Limits(cpu_s=3600, memory_bytes=32 << 20)
    for _ in range(6):
        assert await pool.run(job(jobs.allocate, 20 << 20, limits=small)) == 20 << 20


async def test_cpu_time_is_counted_for_each_job_anew(pool: SandboxPool) -> None:
    for _ in range(12):  # two workers use 0.18 s each
        assert await pool.run(job(jobs.use_cpu, 0.03, limits=Limits(cpu_s=0.12))) == 0


async def test_the_use_of_each_job_is_reported_also_if_it_ends_its_process() -> None:
    uses: list[JobUse] = []
    pool = SandboxPool(num_workers=1, on_use=uses.append)
    await pool.start()
    try:
        await pool.run(job(jobs.use_cpu, 0.2))
        with pytest.raises(Crashed):
            await pool.run(job(jobs.abort))
    finally:
        pool.close()
    assert [(use.function.partition(":")[2], use.outcome) for use in uses] == [
        ("use_cpu", "done"),
        ("abort", "Crashed"),
    ]
    assert uses[0].cpu_s >= 0.2 > uses[1].cpu_s >= 0.0 and all(use.max_rss_bytes > 0 for use in uses)


async def test_a_job_that_does_nothing_ends_at_its_deadline_without_a_proof(pool: SandboxPool) -> None:
    with pytest.raises(TookTooLong) as ended:
        await pool.run(job(jobs.stop_self), deadline_s=0.05)
    assert not ended.value.is_proven
    assert await pool.run(ADD) == 3


async def test_a_killed_job_is_run_once_more(pool: SandboxPool, tmp_path: Path) -> None:
    """As after the kernel's OOM killer, which may choose any process."""
    marker = tmp_path / "first"
    marker.mkdir()
    assert await pool.run(job(jobs.kill_self_once, str(marker))) == 1


async def test_a_worker_has_nothing_open_but_its_socket_and_a_pipe(pool: SandboxPool) -> None:
    opened = await pool.run(Job(jobs.descriptors, (), list[str]))
    assert sorted(name.partition(":")[0] for name in opened) == ["/dev/null", "/dev/null", "pipe", "socket"]


async def test_signals_of_the_terminal_and_of_a_service_manager_reach_no_worker(pool: SandboxPool) -> None:
    session, parent = await pool.run(Job(jobs.session_and_parent, (), list[int]))
    assert parent in pool.pids and session != os.getsid(0)
    worker_pid = await pool.run(job(jobs.process_id))
    for signum in (signal.SIGINT, signal.SIGTERM):
        os.kill(parent, signum)
        os.kill(worker_pid, signum)
    assert await pool.run(Job(jobs.session_and_parent, (), list[int])) == [session, parent]


async def test_workers_end_with_the_pool_even_if_they_are_stopped(pool: SandboxPool) -> None:
    pids = [await pool.run(job(jobs.process_id)), *pool.pids]
    tasks = [asyncio.create_task(pool.run(job(jobs.stop_self))) for _ in range(5)]  # three of them wait
    await until(lambda: state_of(pids[0]) == "T")
    pool.close()
    assert {type(end) for end in await asyncio.gather(*tasks, return_exceptions=True)} == {Killed}
    await until(lambda: all(state_of(pid) in ("", "Z") for pid in pids))


async def test_a_fork_server_that_ends_is_replaced_with_what_was_prepared(pool: SandboxPool) -> None:
    await pool.prepare("base", jobs.base, 40)
    first = pool.pids
    os.kill(first[0], signal.SIGKILL)
    await until(lambda: pool.pids not in ((), first))
    assert await pool.run(Job(jobs.add, (2,), int, prepared="base")) == 42


async def test_of_fork_servers_that_end_while_they_are_prepared_none_is_left(
    pool: SandboxPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may be short for long: as many servers as ended ones would be started at once, and stay."""
    await pool.prepare("base", jobs.base, 40)
    started: list[ForkServer] = []

    def start(*callbacks: Any) -> ForkServer:
        started.append(ForkServer(*callbacks))
        return started[-1]

    async def build(server: ForkServer, name: str) -> None:
        if len(started) < 4:
            os.kill(server.pid, signal.SIGKILL)
        if len(started) == 4:
            raise JobFailed("MemoryError", "there is none")
        await real_build(server, name)

    real_build = pool._build
    monkeypatch.setattr(pool_module, "ForkServer", start)
    monkeypatch.setattr(pool_module, "RESTART_S", (0.0,))
    monkeypatch.setattr(pool, "_build", build)
    os.kill(pool.pids[0], signal.SIGKILL)
    await until(lambda: len(started) >= 5 and pool.pids != ())
    assert await pool.run(Job(jobs.add, (2,), int, prepared="base")) == 42
    assert len(started) == 5 and [server._process.poll() is None for server in started] == [False] * 4 + [True]


async def test_fork_servers_that_are_lost_when_their_workers_are_started_are_replaced(
    pool: SandboxPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first takes no worker any more, the second takes one of two."""
    forks: list[int] = []  # by new fork server

    class Lost(ForkServer):
        def __init__(self, *callbacks: Any) -> None:
            super().__init__(*callbacks)
            forks.append(0)

        def send(self, command: Command, fds: tuple[int, ...] = ()) -> None:
            if isinstance(command, Fork):
                forks[-1] += 1
                if forks in ([1], [1, 2]):
                    os.kill(self.pid, signal.SIGKILL)
                    self._process.wait()
            super().send(command, fds)

    await pool.prepare("base", jobs.base, 40)
    monkeypatch.setattr(pool_module, "ForkServer", Lost)
    monkeypatch.setattr(pool_module, "RESTART_S", (0.0,))
    os.kill(pool.pids[0], signal.SIGKILL)
    await until(lambda: pool._restart is not None and pool._restart.done())
    assert len(pool._idle) == 2
    assert await pool.run(Job(jobs.add, (2,), int, prepared="base")) == 42
    assert forks == [1, 2, 2]


async def test_a_fork_server_that_ends_as_soon_as_it_is_prepared_is_replaced(
    pool: SandboxPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last reply and its end are seen together."""
    await pool.prepare("base", jobs.base, 40)
    built = end_after_build(pool, monkeypatch)
    os.kill(pool.pids[0], signal.SIGKILL)
    await until(lambda: pool._restart is not None and pool._restart.done())
    assert len(pool._idle) == 2
    assert await pool.run(Job(jobs.add, (2,), int, prepared="base")) == 42
    assert len(built) == 2


def end_after_build(pool: SandboxPool, monkeypatch: pytest.MonkeyPatch) -> list[ForkServer]:
    """Kill the first fork server that has built what was prepared. Return those that have."""
    built: list[ForkServer] = []
    real_build = pool._build

    async def build(server: ForkServer, name: str) -> None:
        await real_build(server, name)
        built.append(server)
        if len(built) == 1:
            os.kill(server.pid, signal.SIGKILL)
            await until(lambda: server.is_closed)

    monkeypatch.setattr(pool_module, "RESTART_S", (0.0,))
    monkeypatch.setattr(pool, "_build", build)
    return built


async def test_a_successor_has_what_was_prepared_while_it_was_started(
    pool: SandboxPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pool.prepare("base", jobs.base, 40)
    ends: list[BaseException | None] = []
    real_build = pool._build

    async def build(server: ForkServer, name: str) -> None:
        if pool._server is None and not ends:
            ends.extend(await asyncio.gather(pool.prepare("other", jobs.base, 1), return_exceptions=True))
        await real_build(server, name)

    monkeypatch.setattr(pool, "_build", build)
    os.kill(pool.pids[0], signal.SIGKILL)
    await until(lambda: pool._restart is not None and pool._restart.done())
    assert [type(end) for end in ends] == [Killed]
    assert len(pool._idle) == 2
    sums = [await pool.run(Job(jobs.add, (2,), int, prepared=name)) for name in ("base", "other")]
    assert sums == [42, 3]


async def test_closing_ends_a_fork_server_that_is_being_prepared(
    pool: SandboxPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pool.prepare("base", jobs.base, 40)
    started: list[ForkServer] = []

    async def build(server: ForkServer, name: str) -> None:
        started.append(server)
        await asyncio.Event().wait()

    monkeypatch.setattr(pool, "_build", build)
    os.kill(pool.pids[0], signal.SIGKILL)
    await until(lambda: bool(started))
    pool.close()
    await until(lambda: state_of(started[0].pid) in ("", "Z"))


async def test_every_worker_finds_a_prepared_object(pool: SandboxPool, tmp_path: Path) -> None:
    """Those too that were busy while it was prepared."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    busy = [asyncio.create_task(pool.run(job(jobs.read_fifo, str(fifo)))) for _ in range(2)]
    await asyncio.sleep(0)
    await pool.prepare("base", jobs.base, 40)
    assert not any(task.done() for task in busy)
    await asyncio.to_thread(lambda: fifo.write_bytes(b"go"))
    await asyncio.wait(busy, return_when=asyncio.FIRST_COMPLETED)
    sums = [await pool.run(Job(jobs.add, (i,), int, prepared="base")) for i in range(4)]
    assert sums == list(range(40, 44))
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)


async def test_the_callers_cancellation_frees_the_worker(pool: SandboxPool) -> None:
    tasks = [asyncio.create_task(pool.run(job(jobs.spin))) for _ in range(4)]  # two of them wait
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await pool.run(ADD) == 3


async def test_a_tenant_with_endless_jobs_leaves_a_worker_to_the_others() -> None:
    pool = SandboxPool(num_workers=3, num_tenants=2)
    await pool.start()
    try:
        endless = [asyncio.create_task(pool.run(job(jobs.spin), tenant=0)) for _ in range(10)]
        await asyncio.sleep(0)
        assert await pool.run(ADD, tenant=1) == 3
        assert not any(task.done() for task in endless)
    finally:
        pool.close()
        await asyncio.gather(*endless, return_exceptions=True)


async def test_waiting_jobs_are_bounded() -> None:
    pool = SandboxPool(num_workers=1, max_waiting=2)
    await pool.start()
    try:
        endless = [asyncio.create_task(pool.run(job(jobs.spin))) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(SandboxFull):
            await pool.run(ADD)
    finally:
        pool.close()
        await asyncio.gather(*endless, return_exceptions=True)
