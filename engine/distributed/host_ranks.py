"""The ranks of several hosts as rank 0 sees them: received, told what to compute, watched.

A step and all else that rank 0 tells goes over one connection to each rank; rows are gathered over others. The end of a
connection is the end of a rank, and so of the group. A host that is gone without a word is noticed by what it does not
acknowledge: rank 0 sends a beat twice a second, which also tells the ranks that rank 0 is there.
"""

import contextlib
import errno
import logging
import select
import socket
from collections.abc import Callable
from threading import Thread

import msgspec
from torch.distributed import Store  # type: ignore[attr-defined]

from engine.config import EngineConfig
from engine.distributed.agreement import RankDescription
from engine.distributed.connections import RankConnections
from engine.distributed.host_processes import HostProcesses
from engine.distributed.mesh import prepare_connection
from engine.distributed.packets import PacketKind
from engine.distributed.reception import Reception
from engine.distributed.stores import new_store, write_to_agent_store
from engine.errors import EngineConfigError, FatalEngineError
from model.cut import Cut
from model.group import Group, GroupEndedError

BEAT_S = 0.5
LOOPBACK = "127.0.0.1"  # where the ranks of a single host meet, at a port that the system chooses

NewGroup = Callable[[Cut, Store, str, float], Group]  # (part, store, this host's address, limit of a wait in seconds)

log = logging.getLogger("smoe.engine")


class HostRanks(RankConnections):
    """Ranks 1 .. size - 1, on this host and others, and the group of all ranks."""

    def __init__(
        self,
        config: EngineConfig,
        own: RankDescription,
        version: str,
        on_wait: Callable[[], None],
        new_group: NewGroup,
        num_memories: int,
    ) -> None:
        """Start the other ranks of this host and wait for all. `own` describes rank 0; `new_group` connects the ranks,
        which all call it at the same time; `num_memories` hold the model.

        Raises EngineConfigError, and FatalEngineError if a rank is lost on the way.
        """
        super().__init__()
        self._num_memories = num_memories
        self._new_group = new_group
        self._timeout_s = config.group_timeout
        self._free_bytes: list[int] = []  # of the memories of the other ranks
        if config.nnodes == 1:
            config = msgspec.structs.replace(config, master_addr=LOOPBACK, master_port=0)
        with listen(config) as listener:
            address, port = listener.getsockname()[:2]
            if config.nnodes == 1:
                config = msgspec.structs.replace(config, master_port=port)
            self._processes = HostProcesses(config)
            try:
                reception = Reception(listener, config, own, version)
                self._guests = reception.wait(on_wait, find_ended=self._processes.find_ended)
                self._connections = [guest.connection for guest in self._guests]
                self._connect(config, address)
            except BaseException:
                self.close()
                raise
        Thread(target=self._watch, name="ranks", daemon=True).start()

    @property
    def pids(self) -> list[int]:
        """Process ids of this host's other ranks."""
        return self._processes.pids

    def _connect(self, config: EngineConfig, address: str) -> None:
        """Let all ranks connect to each other. Raises FatalEngineError."""
        self._store = new_store(address, self._timeout_s)
        for guest in self._guests:
            prepare_connection(guest.connection, self._timeout_s)
        self._tell(PacketKind.JOIN, self._store.port.to_bytes(4, "little"))
        try:
            self.group = self._new_group(Cut(0, config.tensor_parallel_size), self._store, address, self._timeout_s)
        except GroupEndedError as error:
            raise FatalEngineError(str(error)) from None

    def free_bytes(self, own_bytes: int, step_bytes: int = 0) -> int:
        return self._num_memories * max(0, min([own_bytes, *(free - step_bytes for free in self._free_bytes)]))

    def close(self) -> None:
        """Let the ranks end, and end those of this host. Idempotent."""
        self._is_closing = True
        for connection in self._connections:
            with contextlib.suppress(OSError):  # not connected any more
                connection.shutdown(socket.SHUT_RDWR)
        super().close()
        self._processes.close()

    def _await_packet(self, connection: socket.socket, on_wait: Callable[[], None]) -> None:
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        while not poll.poll(BEAT_S * 1000):
            on_wait()

    def _on_loaded(self, content: bytearray) -> None:
        self._free_bytes.append(int.from_bytes(content, "little"))

    def _describe_end(self, rank: int) -> str:
        return f"rank {rank} on {self._guests[rank - 1].address} is gone"

    def _watch(self) -> None:
        """Beat, and wait for the end of a connection."""
        poll = select.poll()
        ranks = {connection.fileno(): rank for rank, connection in enumerate(self._connections, 1)}
        for fd in ranks:
            poll.register(fd, select.POLLRDHUP)
        while not (gone := poll.poll(BEAT_S * 1000)):
            with contextlib.suppress(FatalEngineError):  # poll() reports what happened
                self._tell(PacketKind.BEAT, b"")
        if self._is_closing:
            return
        rank = ranks[gone[0][0]]
        late = self._connections[rank - 1].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ETIMEDOUT
        silence = f"rank {rank} on {self._guests[rank - 1].address} did not answer for {self._timeout_s:g} s"
        self.death = silence if late else self._describe_end(rank)
        log.error("%s: the engine ends", self.death)
        self.on_death(self.death)


def listen(config: EngineConfig) -> socket.socket:
    """Return a socket at which the other ranks find rank 0. Raises EngineConfigError.

    Under torchrun, whose agent has the master port, it is a free port, which is written into the agent's store.
    """
    attempt = config.agent_store_attempt
    port = config.master_port if attempt is None else 0
    try:
        family, _, _, _, address = socket.getaddrinfo(config.master_addr, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
        if attempt is not None:
            own_port = listener.getsockname()[1]
            write_to_agent_store(config.master_addr, config.master_port, attempt, own_port)
    except (OSError, UnicodeError) as error:
        raise EngineConfigError(_explain(error, config)) from None
    return listener


def _explain(error: OSError | UnicodeError, config: EngineConfig) -> str:
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"--master-addr {config.master_addr}: this name has no address"
    if error.errno == errno.EADDRINUSE:
        return f"--master-port {config.master_port}: already in use on {config.master_addr}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--master-addr {config.master_addr}: the host with --node-rank 0 does not have that address"
    return f"--master-addr {config.master_addr} --master-port {config.master_port}: {error.strerror}"
