"""One rank of several, but not the first: `python -m engine.rank FD MEMORY_FD RANK PARENT_PID`.

FD is one end of a socket pair with rank 0, MEMORY_FD the memory that all ranks share. The process receives the engine's
config, loads its part of the weights, and then follows: it computes each step that rank 0 tells it, and returns nothing
but its parts of the gathers. It ends when rank 0 ends.
"""

import gc
import sys

from engine.parent_death import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv[4]))  # before the imports below, which take seconds
    gc.disable()  # until main(), as in engine/process.py

import logging
import signal
import socket
import time
from pathlib import Path

import msgspec

from engine.config import EngineConfig
from engine.distributed.follower import Follower
from engine.distributed.packets import PacketKind, receive_packet, send_packet
from engine.errors import EngineConfigError
from engine.startup.loading import load_rank, rank_backend
from model.checkpoint.checkpoint import read_config
from model.checkpoint.errors import CheckpointError
from model.config import ModelConfig
from model.cut import Cut, gather_buffer_bytes
from model.group import GroupEndedError
from model.mixtral import Mixtral
from model.ops.native.group import SharedGroup
from model.ops.native.library import NativeLibrary

# Between two packets while it loads. Rank 0 reads none before it has loaded its own part: if the socket were full by
# then, this rank would wait for it instead of loading.
PROGRESS_S = 5.0

log = logging.getLogger("smoe.engine")


def _load(config: EngineConfig, connection: socket.socket, memory_fd: int, rank: int) -> Mixtral:
    """Load the part of a rank, with a packet now and then. Raises CheckpointError and EngineConfigError."""
    model = _model_config(config)
    cut = Cut(rank, config.tensor_parallel_size)
    group = SharedGroup(NativeLibrary(), cut, memory_fd, gather_buffer_bytes(model))
    told_s = time.monotonic()

    def on_tensor() -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= PROGRESS_S:
            send_packet(connection, PacketKind.PROGRESS)
            told_s = time.monotonic()

    return load_rank(config, model, rank_backend(config, model), group, on_tensor)


def _model_config(config: EngineConfig) -> ModelConfig:
    path, window, k, theta = config.model, config.sliding_window, config.experts_per_token, config.rope_theta
    return read_config(Path(path), window, k, theta)[0]


def follow(connection: socket.socket, memory_fd: int, rank: int) -> None:
    """Load and then follow rank 0 until it closes its end. Raises OSError."""
    start = receive_packet(connection)
    if start is None:
        return
    config = msgspec.msgpack.decode(start[1], type=EngineConfig)
    try:
        follower = Follower(config, _load(config, connection, memory_fd, rank))
    except (CheckpointError, EngineConfigError) as error:
        send_packet(connection, PacketKind.FAILED, str(error).encode())
        return
    send_packet(connection, PacketKind.LOADED)
    while (packet := receive_packet(connection)) is not None:
        follower.handle(*packet)


def main() -> int:
    """Run the process and return its exit code."""
    gc.freeze()
    gc.enable()
    fd, memory_fd, rank = map(int, sys.argv[1:4])
    logging.basicConfig(level=logging.INFO, format=f"%(levelname)s %(name)s: rank {rank}: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        follow(socket.socket(fileno=fd), memory_fd, rank)
    except (OSError, GroupEndedError):
        return 0  # rank 0 ends too, and says why
    except Exception:
        log.exception("the rank failed, and with it the engine")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
