"""Replacement of `python -m engine.process` that exchanges messages and computes nothing.

Run as SCRIPT MODE FD HEARTBEAT_FD PARENT_PID; the last is ignored. The tokens of each request count up from its
prompt's length. Modes:
- count: all tokens in one step
- slowly: one token per step
- hold: only the first token, and no reply about experts
- gate: the first token; the others when the process gets SIGUSR1
- silent: requests are started, but get no output
- fail, crash: the process ends while it loads
- mute: it stops reading and writing while it loads
- die: it exits at the first request
- replaced, slower, adapted: the weights, the numerics or the LoRA adapters are others
- relisted: the weights are the same, and have another name
- dropped: the LoRA adapter could not be loaded
- once-MODE:FILE: the first process creates the file and has the mode, later ones count
- then-MODE:FILE: the first process creates the file and counts, later ones have the mode
A prompt that contains one of the tokens KILLS, KILLS_LATER, QUEUES or STOPS has that effect.
"""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine.heartbeat import Heartbeat
from engine.messages import (
    Abort,
    Add,
    ExpertsQuery,
    ExpertsReply,
    Failed,
    FrameReader,
    PrefillStarted,
    Progress,
    Ready,
    Start,
    StepDone,
    ToEngine,
    encode_frame,
)
from engine.types import ExpertReport, Request, RequestOutput, StepOutput, StepStats, Timing

VOCAB_SIZE = 4096
KILLS, KILLS_LATER, QUEUES, STOPS = 4090, 4091, 4092, 4093
READY = Ready(
    max_model_len=2048,
    max_prompt_tokens=2047,
    vocab_size=VOCAB_SIZE,
    eos_token_ids=[2],
    num_parameters=1000,
    weight_bytes=2000,
    kv_cache_bytes=100 * 16 * 10,
    kv_bytes_per_token=10,
    num_blocks=100,
    block_size=16,
    num_layers=2,
    num_experts=8,
    experts_per_token=2,
    window=None,
    dtype="float32",
    device="cpu",
    backend="reference",
    fingerprint="fake-weights-0123",
    phase_seconds={"weights": 0.5},
    adapters={"sql": "0123"},
)


def outputs_of(request: Request, mode: str) -> Iterator[RequestOutput]:
    first = len(request.prompt_token_ids)
    token_ids = [first + i for i in range(request.params.max_tokens)]
    now = time.monotonic()
    timing = Timing(request.arrival_s, now, now, now)
    if mode == "hold":
        yield RequestOutput(request.request_id, token_ids[:1])
        return
    if mode == "gate":
        yield RequestOutput(request.request_id, token_ids[:1])
        GATE.hold(RequestOutput(request.request_id, token_ids[1:], finish_reason="length", timing=timing))
        return
    if mode == "slowly":
        for token_id in token_ids[:-1]:
            yield RequestOutput(request.request_id, [token_id])
        token_ids = token_ids[-1:]
    yield RequestOutput(request.request_id, token_ids, finish_reason="length", timing=timing)


class Gate:
    """Outputs that wait for SIGUSR1."""

    is_open = False

    def __init__(self) -> None:
        self._waiting: list[RequestOutput] = []
        signal.signal(signal.SIGUSR1, self._open)

    def hold(self, output: RequestOutput) -> None:
        self._waiting.append(output)

    def release(self, connection: socket.socket) -> None:
        """Send what waits, if the gate is open."""
        if self.is_open and self._waiting:
            outputs, self._waiting = self._waiting, []
            connection.sendall(encode_frame(StepDone(StepOutput(outputs, StepStats(num_blocks_total=100)))))

    def _open(self, *signal_and_frame: object) -> None:
        self.is_open = True


GATE = Gate()


def begin(connection: socket.socket, requests: list[Request]) -> None:
    """Start all requests, as in one step. Those that kill or stop the process do so now."""
    prompts = {request.request_id: request.prompt_token_ids for request in requests}
    started = [request_id for request_id, prompt in prompts.items() if QUEUES not in prompt]
    connection.sendall(encode_frame(PrefillStarted(started)))
    for prompt in prompts.values():
        if KILLS in prompt:
            os._exit(9)
        if STOPS in prompt:
            os.kill(os.getpid(), signal.SIGSTOP)


def steps_of(message: ToEngine, mode: str) -> Iterator[StepDone | None]:
    if isinstance(message, Abort):
        yield StepDone(StepOutput([], StepStats(num_blocks_total=100)), message.request_ids)
    if isinstance(message, Add):
        for request in message.requests:
            if mode == "silent" or QUEUES in request.prompt_token_ids:
                continue
            for output in outputs_of(request, mode):
                num_running = 0 if output.finish_reason else 1
                stats = StepStats(
                    num_running=num_running, num_tokens=1, num_generated_tokens=1, step_s=0.01, num_blocks_total=100
                )
                yield StepDone(StepOutput([output], stats))
                if KILLS_LATER in request.prompt_token_ids:
                    yield None


def load(connection: socket.socket, mode: str) -> None:
    connection.sendall(encode_frame(Progress("weights", 1000, 2000)))
    if mode == "fail":
        connection.sendall(encode_frame(Failed("/ckpt/model.safetensors: truncated", 2)))
        sys.exit(2)
    if mode == "crash":
        os._exit(9)
    if mode == "mute":
        signal.pause()
    others: dict[str, dict[str, Any]] = {
        "replaced": {"checkpoint_files": "other", "fingerprint": "fake-weights-other"},
        "relisted": {"fingerprint": "fake-weights-other"},
        "slower": {"fingerprint": "slow-weights-0123"},
        "adapted": {"adapters": {"sql": "other"}},
        "dropped": {"adapters": {}, "dropped_adapters": {"sql": "/adapters/sql is gone"}},
    }
    connection.sendall(encode_frame(msgspec.structs.replace(READY, **others.get(mode, {}))))


def mode_of(argument: str) -> str:
    """Return the mode of this process, see above."""
    kind, _, path = argument.partition(":")
    if not path:
        return kind
    when, mode = kind.split("-")
    is_first = not Path(path).exists()
    Path(path).touch()
    return mode if is_first == (when == "once") else "count"


def chunks(connection: socket.socket, heartbeat: Heartbeat) -> Iterator[bytes]:
    """Yield the bytes that arrive; increment the heartbeat while waiting."""
    readable = select.poll()
    readable.register(connection, select.POLLIN)
    while True:
        heartbeat.beat()
        GATE.release(connection)
        if readable.poll(20):
            yield (chunk := connection.recv(1 << 16))
            if not chunk:
                return


def main(mode: str, connection: socket.socket, heartbeat: Heartbeat) -> None:
    reader: FrameReader[ToEngine] = FrameReader(ToEngine)
    num_asked = 0
    for chunk in chunks(connection, heartbeat):
        for message in reader.feed(chunk):
            if isinstance(message, Start):
                load(connection, mode)
            elif mode == "die":
                os._exit(9)
            elif isinstance(message, ExpertsQuery) and mode != "hold":
                num_asked += 1
                report = ExpertReport(float(num_asked), [])
                connection.sendall(encode_frame(ExpertsReply(message.query_id, report)))
            elif isinstance(message, Add):
                begin(connection, message.requests)
            for step in steps_of(message, mode):
                if step is None:
                    os._exit(9)
                connection.sendall(encode_frame(step))


if __name__ == "__main__":
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    main(mode_of(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), Heartbeat(int(sys.argv[3])))
