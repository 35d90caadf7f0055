"""The machine of a simulation: starts engine processes and connects them, behind the calls of asyncio's event loop."""

import asyncio
import random
import select
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import greenlet

import engine.process
import server.engine_client.launch
import server.engine_client.supervisor
from tests.simulator.system.engine_host import EngineHost, EngineSocket
from tests.simulator.system.engines import Plan
from tests.simulator.system.link import ServerEnd
from tests.simulator.system.truth import Truth
from tests.simulator.system.virtual_loop import VirtualLoop

MAX_SELECT_FD = 1023


@dataclass
class FakeHeartbeat:
    """engine.heartbeat.Heartbeat without shared memory."""

    fd: int
    count: int = 0

    def beat(self) -> None:
        self.count += 1

    def close(self) -> None:
        pass


class HostTransport(asyncio.SubprocessTransport):
    """A process as asyncio.subprocess.Process sees it."""

    def __init__(self, host: EngineHost) -> None:
        super().__init__()
        self._host = host

    def get_pid(self) -> int:
        return self._host.pid

    def get_returncode(self) -> int | None:
        return self._host.exit_code.result() if self._host.exit_code.done() else None

    def get_pipe_transport(self, fd: int) -> None:
        return None

    async def _wait(self) -> int:
        return await asyncio.shield(self._host.exit_code)

    def send_signal(self, signal: int) -> None:
        if self.get_returncode() is not None:
            raise ProcessLookupError
        self._host.signal(signal)


class Machine(VirtualLoop):
    """Event loop on which the product's EngineProcessHandle starts simulated processes."""

    def __init__(self, rng: random.Random, plan: Plan, truth: Truth) -> None:
        super().__init__()
        self.rng, self.plan, self.truth = rng, plan, truth
        self.host: EngineHost | None = None  # the newest process
        self._hosts: list[EngineHost] = []
        self._unconnected: list[EngineHost] = []
        self._heartbeats: dict[int, Any] = {}  # by their invented descriptors
        self.set_exception_handler(self._on_exception)

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.truth.violate(f"{context['message']}: {context.get('exception')!r}")

    async def subprocess_exec(self, protocol_factory: Any, *arguments: Any, **options: Any) -> Any:
        if self.host is not None and self.host.life.is_alive:
            self.truth.violate("an engine starts before the one before it has ended: the memory holds one of them")
        host = EngineHost(self, self.rng, self.plan, self.truth, self._heartbeats[options["pass_fds"][1]])
        self.truth.note(self.time(), f"engine {host.pid} starts")
        self.host = host
        self._hosts.append(host)
        self._unconnected.append(host)
        protocol = protocol_factory()
        transport = HostTransport(host)
        protocol.connection_made(transport)
        return transport, protocol

    def new_heartbeat(self) -> Any:
        """Return a counter that server and process share."""
        heartbeat = FakeHeartbeat(fd=10_000 + len(self._heartbeats))
        self._heartbeats[heartbeat.fd] = heartbeat
        return heartbeat

    def close(self) -> None:
        """Close the loop and free all processes: a suspended greenlet is not freed by itself."""
        for host in self._hosts:
            host.free()
        super().close()

    async def connect_read_pipe(self, protocol_factory: Any, pipe: Any) -> Any:
        """Close the pipe: simulated processes write nothing to standard error."""
        pipe.close()
        protocol = protocol_factory()
        protocol.connection_lost(None)
        return None, protocol

    async def create_connection(self, protocol_factory: Any, *arguments: Any, **options: Any) -> Any:
        options["sock"].close()
        host = self._unconnected.pop(0)
        protocol = protocol_factory()
        end = ServerEnd(self, protocol)
        protocol.connection_made(end)
        host.connect(end)
        return end, protocol


class FakePoll:
    """select.poll() of the running process."""

    def register(self, connection: EngineSocket, mask: int) -> None:
        self._connection = connection

    def poll(self, timeout_ms: float) -> list[EngineSocket]:
        return [self._connection] if self._connection._host.wait(timeout_ms / 1000) else []


def fake_select(readers: list[EngineSocket], writers: object, others: object, timeout_s: float) -> Any:
    """select.select(), with its limit: it raises ValueError for a descriptor above 1023."""
    if any(reader.fileno() > MAX_SELECT_FD for reader in readers):
        raise ValueError("filedescriptor out of range in select()")
    return [reader for reader in readers if reader._host.wait(timeout_s)], [], []


def load_in_host(
    config: Any,
    on_progress: Callable[[str, int, int], None],
    *,
    vocabulary: Any = None,
    heartbeat: Any = None,
    end_ids: Any = (),
) -> Any:
    """Stand in for Engine.load in the process that runs now."""
    host: EngineHost = greenlet.getcurrent().run_host  # type: ignore[attr-defined]
    return host.load(config, on_progress)


@contextmanager
def simulated_system(machine: Machine) -> Iterator[None]:
    """Replace what the product takes from the operating system: clock, poll, model files, garbage collector."""
    monotonic = SimpleNamespace(monotonic=machine.time)
    polling = SimpleNamespace(poll=FakePoll, POLLIN=select.POLLIN, select=fake_select)
    collector = SimpleNamespace(collect=lambda: None, freeze=lambda: None)
    with ExitStack() as stack:
        stack.enter_context(patch.object(server.engine_client.supervisor, "time", monotonic))
        stack.enter_context(patch.object(server.engine_client.launch, "Heartbeat", machine.new_heartbeat))
        stack.enter_context(patch.object(engine.process, "select", polling))
        stack.enter_context(patch.object(engine.process, "gc", collector))
        stack.enter_context(patch.object(engine.process, "Engine", SimpleNamespace(load=load_in_host)))
        yield
