"""Engine without a model: every request gets one token per step, so that the front end alone is measured.

`python -m server.bench.stub_engine STEPS_PER_S FD HEARTBEAT_FD PARENT_PID`: speaks engine.process's protocol and
increments its heartbeat. 0 steps per second means: as fast as the peer reads.
"""

import select
import signal
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from engine.heartbeat import Heartbeat
from engine.messages import Abort, Add, FrameReader, FromEngine, Ready, Start, StepDone, ToEngine, encode_frame
from engine.types import Request, RequestOutput, StepOutput, StepStats, Timing

RECEIVE_BYTES = 1 << 18
MAX_WAIT_S = 0.5  # between two increments of the heartbeat
VOCAB_SIZE = 32000
FIRST_ID, LAST_ID = 300, 2000  # range of generated ids: plain text in any vocabulary of that size
READY = Ready(
    max_model_len=1 << 20,
    max_prompt_tokens=(1 << 20) - 1,
    vocab_size=VOCAB_SIZE,
    eos_token_ids=[2],
    num_parameters=0,
    weight_bytes=0,
    kv_cache_bytes=0,
    kv_bytes_per_token=1,
    num_blocks=1 << 20,
    block_size=16,
    num_layers=1,
    num_experts=8,
    experts_per_token=2,
    window=None,
    dtype="bfloat16",
    device="cpu",
    backend="stub",
    fingerprint="stub",
    phase_seconds={},
)


@dataclass
class Running:
    """A request and its number of generated tokens."""

    request: Request
    num_tokens: int = 0

    def step(self) -> RequestOutput:
        """Return the next token, with a finish reason if it is the last one."""
        self.num_tokens += 1
        request = self.request
        token_ids = [FIRST_ID + (request.request_id * 7 + self.num_tokens * 13) % (LAST_ID - FIRST_ID)]
        if not self.is_finished:
            return RequestOutput(request.request_id, token_ids)
        now_s = time.monotonic()
        timing = Timing(request.arrival_s, now_s, now_s, now_s)
        return RequestOutput(request.request_id, token_ids, finish_reason="length", timing=timing)

    @property
    def is_finished(self) -> bool:
        return self.num_tokens >= self.request.params.max_tokens


class StubEngine:
    """Engine that runs all requests in one batch and gives each one token per step."""

    def __init__(self) -> None:
        self._running: dict[int, Running] = {}

    def handle(self, messages: Iterable[ToEngine]) -> list[FromEngine]:
        """Apply the messages and return the immediate answers."""
        answers: list[FromEngine] = []
        for message in messages:
            if isinstance(message, Start):
                answers.append(READY)
            elif isinstance(message, Add):
                self._running |= {request.request_id: Running(request) for request in message.requests}
            elif isinstance(message, Abort):
                for request_id in message.request_ids:
                    self._running.pop(request_id, None)
                answers.append(StepDone(StepOutput([], self._stats(0)), message.request_ids))
        return answers

    @property
    def is_idle(self) -> bool:
        return not self._running

    def step(self) -> StepDone:
        """Give each request one token."""
        outputs = [running.step() for running in self._running.values()]
        self._running = {key: running for key, running in self._running.items() if not running.is_finished}
        return StepDone(StepOutput(outputs, self._stats(len(outputs))))

    def _stats(self, num_tokens: int) -> StepStats:
        return StepStats(num_running=len(self._running), num_tokens=num_tokens, num_blocks_total=READY.num_blocks)


def serve(connection: socket.socket, heartbeat: Heartbeat, steps_per_s: float) -> None:
    """Run until the peer closes the connection."""
    stub, reader, due_s = StubEngine(), FrameReader[ToEngine](ToEngine), time.monotonic()
    readable = select.poll()
    readable.register(connection, select.POLLIN)
    while True:
        heartbeat.beat()
        wait_s = MAX_WAIT_S if stub.is_idle else min(max(0.0, due_s - time.monotonic()), MAX_WAIT_S)
        if readable.poll(1000 * wait_s):
            chunk = connection.recv(RECEIVE_BYTES)
            if not chunk:
                return
            for answer in stub.handle(reader.feed(chunk)):
                connection.sendall(encode_frame(answer))
        if not stub.is_idle and time.monotonic() >= due_s:
            connection.sendall(encode_frame(stub.step()))
            due_s = max(due_s, time.monotonic() - 1.0) + 1 / steps_per_s if steps_per_s else 0.0


def main() -> None:
    """Entry point of the process."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    steps_per_s, fd, heartbeat_fd = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    serve(socket.socket(fileno=fd), Heartbeat(heartbeat_fd), steps_per_s)


if __name__ == "__main__":
    main()
