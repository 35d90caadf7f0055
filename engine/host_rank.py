"""One rank, but not the first, of several hosts or of GPUs: `python -m engine.host_rank FD HEARTBEAT_FD PARENT_PID`.

The arguments are those of engine/process.py, and so is Start, the first message: to the process that started it, a rank
is an engine that gets no requests. It joins rank 0 (engine/distributed/joining.py), loads its part of the weights,
sends Ready, and then computes each step that rank 0 tells it. It ends when rank 0 ends or says nothing for too long.
"""

import gc
import sys

from engine.out_of_memory import is_out_of_memory
from engine.parent_death import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv[3]))  # before the imports below, which take seconds
    gc.disable()  # until main(), as in engine/process.py

import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from engine.capacity.rank_limits import rank_warnings, with_rank_threads
from engine.config import EngineConfig
from engine.distributed.agreement import RankDescription
from engine.distributed.follower import Follower
from engine.distributed.host_processes import HostProcesses
from engine.distributed.joining import Membership, join
from engine.distributed.new_group import group_maker
from engine.distributed.packets import PacketKind, receive_packet, send_packet
from engine.distributed.stores import join_store
from engine.errors import EngineConfigError, FatalEngineError, PeerClosedError
from engine.heartbeat import Heartbeat
from engine.messages import Failed, Start, StepPart
from engine.process import CRASH, IDLE_S, LOST_GROUP, NO_MEMORY, USER_ERROR, Channel
from engine.startup.description import rank_ready_message
from engine.startup.device_memory import memory_of
from engine.startup.kernel_compilation import compile_for_rank
from engine.startup.loading import choose_device, host_backend, load_rank
from model.checkpoint.checkpoint import read_config, read_stored_weights
from model.checkpoint.errors import CheckpointError
from model.checkpoint.identity import contents_digest, files_digest
from model.checkpoint.manifest import verify_manifest
from model.cut import Cut
from model.group import GroupEndedError
from model.mixtral import Mixtral

END_GRACE_S = 2.0

log = logging.getLogger("smoe.engine")


class HostRank:
    """The life of one rank."""

    def __init__(self, channel: Channel, heartbeat: Heartbeat) -> None:
        self._channel = channel
        self._heartbeat = heartbeat

    def run(self) -> int:
        """Join, load and follow; return the exit code."""
        try:
            self._join_and_follow()
        except PeerClosedError:
            return 0
        except (CheckpointError, EngineConfigError) as error:
            return self._fail(str(error), USER_ERROR)
        except (FatalEngineError, GroupEndedError) as error:
            return self._fail(str(error) or LOST_GROUP, CRASH)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return self._fail(NO_MEMORY, CRASH)
        except OSError as error:
            return self._fail(f"the connection to rank 0 broke: {error.strerror}", CRASH)

    def _join_and_follow(self) -> NoReturn:
        config = self._receive_config()
        processes = HostProcesses(config)
        try:
            self._follow(*self._load(config))
        finally:
            processes.close()

    def _fail(self, message: str, exit_code: int) -> int:
        self._channel.send(Failed(message, exit_code))
        return exit_code

    def _receive_config(self) -> EngineConfig:
        while True:
            self._heartbeat.beat()
            for message in self._channel.receive(IDLE_S):
                assert isinstance(message, Start), "the first message must be Start"
                return message.config

    def _load(self, own: EngineConfig) -> tuple[Membership, Follower]:
        """Join the group and load this rank's part. An error in this host's settings or files is told to rank 0 too."""
        membership = join(own, version("smoe"), self._heartbeat.beat)
        try:
            return membership, Follower(membership.config, self._load_part(membership))
        except (CheckpointError, EngineConfigError) as error:
            with contextlib.suppress(OSError):
                send_packet(membership.connection, PacketKind.FAILED, str(error).encode())
            raise

    def _load_part(self, membership: Membership) -> Mixtral:
        config = with_rank_threads(membership.config)
        device = choose_device(config)
        for line in rank_warnings(config, device.type):
            log.warning("%s", line)
        path, beat = Path(config.model), self._heartbeat.beat
        model, _ = read_config(path, config.sliding_window, config.experts_per_token, config.rope_theta)
        if config.verify and config.local_rank == 0:
            verify_manifest(path, lambda done, total: beat())
        stored = read_stored_weights(path, model)
        backend = host_backend(config, model, stored, device, self._heartbeat)
        port = membership.describe(RankDescription(backend.numerics, contents_digest(stored.values())), beat)
        store = join_store(membership.leader_address, port, config.group_timeout)
        cut = Cut(config.rank, config.tensor_parallel_size)
        new_group = group_maker(backend.name, device)
        group = new_group(cut, store, membership.own_address, config.group_timeout)
        network = load_rank(config, model, backend, group, beat, device)
        network.on_layer = beat
        compile_for_rank(config, network, backend.name, beat)
        if device.type != "cpu":
            _end_with(membership.connection)
        free_bytes = memory_of(device).free_bytes()
        send_packet(membership.connection, PacketKind.LOADED, free_bytes.to_bytes(8, "little"))
        files = files_digest(stored.values())
        self._channel.send(rank_ready_message(config, model, backend, device, files))
        return network

    def _follow(self, membership: Membership, follower: Follower) -> NoReturn:
        """Carry out what rank 0 tells. Raises FatalEngineError when it is gone, and OSError."""
        timeout_s, has_computed = membership.config.group_timeout, False
        membership.connection.settimeout(timeout_s)
        while True:
            try:
                packet = receive_packet(membership.connection)
            except TimeoutError:
                raise FatalEngineError(f"rank 0 sent nothing for {timeout_s:g} s") from None
            if packet is None:
                raise FatalEngineError("rank 0 is gone")
            self._heartbeat.beat()
            if packet[0] is PacketKind.BEAT:
                continue
            follower.handle(*packet)
            if packet[0] is PacketKind.STEP and not has_computed:
                has_computed = True
                self._channel.send(StepPart([]))  # it has served: restarts may be quick again


def _end_with(leader: socket.socket) -> None:
    """End this process soon after rank 0 is gone, even while it waits for a GPU that waits for rank 0's."""

    def watch() -> None:
        poll = select.poll()
        poll.register(leader, select.POLLRDHUP)
        poll.poll()
        time.sleep(END_GRACE_S)  # in which the main thread says why, if it does not wait for the GPU
        os._exit(CRASH)

    threading.Thread(target=watch, name="leader", daemon=True).start()


def main() -> int:
    """Run the process and return its exit code. Whoever started it reads its standard error."""
    gc.freeze()
    gc.enable()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    return HostRank(channel, Heartbeat(int(sys.argv[2]))).run()


if __name__ == "__main__":
    sys.exit(main())
