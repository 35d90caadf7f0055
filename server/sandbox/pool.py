"""The pool of sandbox processes: runs untrusted jobs in them, each under limits, in fair turns between tenants.

Workers are started ahead, and a worker that ends is replaced at once, so no job waits for a start.
"""

import asyncio
import contextlib
import itertools
import logging
import signal
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec

from server.sandbox.errors import Crashed, JobFailed, Killed, RanOutOfMemory, SandboxError, TookTooLong
from server.sandbox.fair_turns import FairTurns
from server.sandbox.fork_server import ForkServer, ForkServerLost
from server.sandbox.job import DEFAULT_LIMITS, MAX_WORKERS, Job, JobUse, Limits, name_of
from server.sandbox.messages import Call, Exited, Fork, Kill, Prepare, Reply
from server.sandbox.worker import OUT_OF_MEMORY
from server.sandbox.worker_handle import WorkerHandle, exchange

logger = logging.getLogger("smoe.sandbox")

MAX_WORKERS_PER_TENANT = 2  # where there are several: one is left for the others
MAX_WAITING = 128
DEADLINE_S = 30.0  # on a worker: far beyond the CPU time of a job, so only a stopped process reaches it
REFORK_S = 0.2  # before a worker is replaced that ended without a job
RESTART_S = (0.0, 0.1, 0.5, 2.0)  # before the fork server is started again; the last repeats

T = TypeVar("T")


class Sandbox(Protocol):
    """Place where untrusted jobs run: SandboxPool, or in tests the test's own process."""

    async def run(self, job: Job[T], *, deadline_s: float = DEADLINE_S, tenant: int = 0) -> T: ...
    async def prepare(self, name: str, function: Callable[..., object], *args: Any) -> None: ...


class SandboxPool:
    """Workers of one fork server. Every method belongs to the event loop that called start()."""

    def __init__(
        self,
        num_workers: int = MAX_WORKERS,
        num_tenants: int = 1,
        max_waiting: int = MAX_WAITING,
        limits: Limits = DEFAULT_LIMITS,
        on_use: Callable[[JobUse], None] = lambda use: None,
    ) -> None:
        """`limits`: of jobs that have none of their own. `on_use` receives what each job has used."""
        self._limits = limits
        self._on_use = on_use
        self._num_workers = num_workers
        self._max_per_tenant = MAX_WORKERS_PER_TENANT if num_tenants > 1 else num_workers
        self._turns = FairTurns(max_waiting, max_waiting // 2 if num_tenants > 1 else max_waiting)
        self._ids = itertools.count()
        self._server: ForkServer | None = None
        self._prepared: dict[str, tuple[Callable[..., object], tuple[Any, ...]]] = {}
        self._workers: dict[int, WorkerHandle] = {}  # that have not ended
        self._idle: list[WorkerHandle] = []
        self._running: Counter[int] = Counter()  # tenant -> jobs on workers
        self._restart: asyncio.Task[None] | None = None
        self._num_restarts = 0
        self._generation = 0
        self._is_closed = False

    async def start(self) -> None:
        """Start the fork server and the first workers. Raises OSError."""
        self._server = ForkServer(self._on_exited, self._on_server_lost)
        self._fork_missing()

    def close(self) -> None:
        """Kill all processes. Waits for none of their jobs; jobs in progress end with Killed. Idempotent."""
        self._is_closed = True
        if self._restart is not None:
            self._restart.cancel()
        if self._server is not None:
            self._server.close()
        self._server = None
        for worker in list(self._workers.values()):
            self._on_server_gone(worker)
        self._turns.fail_all(Killed("the sandbox is closed"))

    @property
    def pids(self) -> tuple[int, ...]:
        """Process id of the fork server, if there is one: its children are the workers."""
        return () if self._server is None else (self._server.pid,)

    async def prepare(self, name: str, function: Callable[..., object], *args: Any) -> None:
        """Build `function(*args)` once, for all later jobs that name it. The work must have passed as a job before.

        Raises JobFailed if the function raises, Killed if the fork server ends meanwhile.
        """
        self._prepared[name] = function, args
        if self._server is None:
            raise Killed("the sandbox has no fork server")
        try:
            await self._build(self._server, name)
        except ForkServerLost:
            raise Killed("the fork server ended") from None
        for worker in [worker for worker in self._idle if worker.generation < self._generation]:
            self._end(worker)

    async def run(self, job: Job[T], *, deadline_s: float = DEADLINE_S, tenant: int = 0) -> T:
        """Run a job and return its result. The caller's cancellation kills it.

        `deadline_s`: wall time on a worker, without the wait for one. Raises SandboxFull at once; RanOutOfMemory,
        TookTooLong, Crashed and JobFailed by the job's fault; Killed if something else killed the worker, twice.
        """
        try:
            return await self._attempt(job, deadline_s, tenant)
        except Killed:
            return await self._attempt(job, deadline_s, tenant)

    async def _attempt(self, job: Job[T], deadline_s: float, tenant: int) -> T:
        if self._is_closed:
            raise Killed("the sandbox is closed")
        worker = await self._take_worker(tenant)
        limits = job.limits or self._limits
        call = Call(name_of(job.function), job.args, job.prepared, limits.cpu_s, limits.memory_bytes)
        is_usable = False
        charged_s = limits.cpu_s  # unless a reply says how much it was
        try:
            async with asyncio.timeout(deadline_s):
                reply = await worker.run(call)
            charged_s = reply.cpu_s
            worker.used_s += reply.cpu_s
            outcome = "done" if reply.error is None else reply.error[0]
            self._on_use(JobUse(call.function, outcome, reply.cpu_s, reply.max_rss_bytes))
            self._num_restarts = 0
            is_usable = not reply.retires
        except TimeoutError:
            raise TookTooLong("it was not done at its deadline", is_proven=False) from None
        except SandboxError as end:
            if worker.exited.done():
                exited = worker.exited.result()
                used_s = exited.cpu_s - worker.used_s
                self._on_use(JobUse(call.function, type(end).__name__, used_s, exited.max_rss_bytes))
            raise
        finally:
            self._turns.charge(tenant, charged_s)
            self._running[tenant] -= 1
            self._give_back(worker, is_usable=is_usable)
        return _result(reply, job)

    async def _take_worker(self, tenant: int) -> WorkerHandle:
        turn = self._turns.join(tenant)
        self._give_turns()
        try:
            return await turn
        except asyncio.CancelledError:
            self._turns.leave(tenant, turn)
            if turn.done() and not turn.cancelled():  # it came just before
                self._running[tenant] -= 1
                self._give_back(turn.result(), is_usable=True)
            raise

    def _give_back(self, worker: WorkerHandle, *, is_usable: bool) -> None:
        if is_usable and worker.worker_id in self._workers and worker.generation == self._generation:
            self._idle.append(worker)
        else:
            self._end(worker)
        self._give_turns()

    def _give_turns(self) -> None:
        """Hand idle workers to waiting jobs."""
        while self._idle:
            tenant = self._turns.give_turn(self._idle[-1], lambda tenant: self._running[tenant] < self._max_per_tenant)
            if tenant is None:
                return
            self._idle.pop()
            self._running[tenant] += 1

    def _fork_missing(self) -> None:
        """Start workers up to their number. Does nothing without a fork server: its successor starts them."""
        while self._server is not None and len(self._workers) < self._num_workers:
            worker = WorkerHandle(next(self._ids), self._generation)
            try:
                self._server.send(Fork(worker.worker_id), worker.their_fds)
            except ForkServerLost:
                worker.close()
                return
            finally:
                worker.close_their_ends()
            self._workers[worker.worker_id] = worker
            self._idle.insert(0, worker)
        self._give_turns()

    def _end(self, worker: WorkerHandle) -> None:
        """Kill a worker and start another."""
        self._forget(worker)
        if self._server is not None:
            with contextlib.suppress(ForkServerLost):
                self._server.send(Kill(worker.worker_id))
        self._fork_missing()

    def _forget(self, worker: WorkerHandle) -> None:
        self._workers.pop(worker.worker_id, None)
        if worker in self._idle:
            self._idle.remove(worker)
        worker.close()

    def _on_exited(self, exited: Exited) -> None:
        worker = self._workers.get(exited.worker_id)
        if worker is None:
            return  # killed by this pool
        if worker in self._idle:  # it could not start, or was killed; when memory is short the next one is killed too
            self._forget(worker)
            asyncio.get_running_loop().call_later(REFORK_S, self._fork_missing)
        elif not worker.exited.done():
            worker.exited.set_result(exited)

    def _on_server_lost(self) -> None:
        logger.warning("the sandbox's fork server ended; another is started")
        self._server = None
        for worker in list(self._workers.values()):
            self._on_server_gone(worker)
        if self._restart is not None and not self._restart.done():
            return  # the server that is being prepared has ended; its restart goes on
        self._restart = asyncio.get_running_loop().create_task(self._start_again())

    def _on_server_gone(self, worker: WorkerHandle) -> None:
        """Forget a worker that the kernel kills now; its job, if it has one, reads the end of the socket."""
        if worker in self._idle:
            self._forget(worker)
        elif not worker.exited.done():
            worker.exited.set_result(Exited(worker.worker_id, -signal.SIGKILL, 0.0))

    async def _start_again(self) -> None:
        while not self._is_closed:
            await asyncio.sleep(RESTART_S[min(self._num_restarts, len(RESTART_S) - 1)])
            self._num_restarts += 1
            try:
                await self._start_prepared()
                return
            except (OSError, ForkServerLost, SandboxError):
                logger.exception("the sandbox could not be started; trying again")

    async def _start_prepared(self) -> None:
        """Start a fork server that has all prepared objects, and its workers.

        Raises OSError, ForkServerLost, JobFailed.
        """
        server = ForkServer(self._on_exited, self._on_server_lost)
        try:
            built: set[str] = set()
            while missing := [name for name in self._prepared if name not in built]:  # more may come meanwhile
                await self._build(server, missing[0])
                built.add(missing[0])
            self._server = server
            self._fork_missing()
            if server.is_closed:
                raise ForkServerLost
        except BaseException:
            self._server = None
            server.close()
            raise

    async def _build(self, server: ForkServer, name: str) -> None:
        """Build a prepared object in the fork server. Raises ForkServerLost or JobFailed."""
        function, args = self._prepared[name]
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            server.send(Prepare(name), (theirs.fileno(),))
            theirs.close()
            self._generation += 1  # workers that are started from here on have the object
            try:
                reply = await exchange(ours, Call(name_of(function), args, None, 0.0, 0))
            except (OSError, EOFError):
                raise ForkServerLost from None
        _raise_error(reply)


def _result(reply: Reply, job: Job[T]) -> T:
    _raise_error(reply)
    try:
        return msgspec.msgpack.decode(reply.value, type=job.returns)
    except msgspec.DecodeError:
        raise Crashed("it returned something else than its type") from None


def _raise_error(reply: Reply) -> None:
    if reply.error is None:
        return
    kind, message = reply.error
    if kind == OUT_OF_MEMORY:
        raise RanOutOfMemory("it needed more memory than its limit")
    raise JobFailed(kind, message)
