"""A stand-in for `python -m engine.process`: speaks the frames, computes nothing. Run as SCRIPT MODE FD.

Each request counts up from its prompt's length. MODE: "count" gives every token in one step, "slowly" one at a time,
"hold" the first token only and no word of the experts; "fail" and "crash" end while loading, "mute" stops reading and
writing, "die" exits at the first request.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator

from engine.messages import (
    Abort,
    Add,
    AskExperts,
    Experts,
    Failed,
    FrameReader,
    Progress,
    Ready,
    Start,
    Step,
    ToEngine,
    encode_frame,
)
from engine.types import ExpertReport, Request, RequestOutput, StepOutput, StepStats, Timing

VOCAB_SIZE = 4096
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
    fingerprint="fake",
    phase_seconds={"weights": 0.5},
)


def outputs_of(request: Request, mode: str) -> Iterator[RequestOutput]:
    first = len(request.prompt_token_ids)
    token_ids = [first + i for i in range(request.params.max_tokens)]
    now = time.monotonic()
    timing = Timing(request.arrival_s, now, now, now)
    if mode == "hold":
        yield RequestOutput(request.request_id, token_ids[:1])
        return
    if mode == "slowly":
        for token_id in token_ids[:-1]:
            yield RequestOutput(request.request_id, [token_id])
        token_ids = token_ids[-1:]
    yield RequestOutput(request.request_id, token_ids, finish_reason="length", timing=timing)


def steps_of(message: ToEngine, mode: str) -> Iterator[Step]:
    if isinstance(message, Abort):
        yield Step(StepOutput([], StepStats(num_blocks_total=100)))
    if isinstance(message, Add):
        for request in message.requests:
            for output in outputs_of(request, mode):
                num_running = 0 if output.finish_reason else 1
                stats = StepStats(num_running=num_running, num_tokens=1, step_s=0.01, num_blocks_total=100)
                yield Step(StepOutput([output], stats))


def load(connection: socket.socket, mode: str) -> None:
    connection.sendall(encode_frame(Progress("weights", 1000, 2000)))
    if mode == "fail":
        connection.sendall(encode_frame(Failed("/ckpt/model.safetensors: truncated", 2)))
        sys.exit(2)
    if mode == "crash":
        os._exit(9)
    if mode == "mute":
        signal.pause()
    connection.sendall(encode_frame(READY))


def main(mode: str, connection: socket.socket) -> None:
    reader: FrameReader[ToEngine] = FrameReader(ToEngine)
    num_asked = 0
    while chunk := connection.recv(1 << 16):
        for message in reader.feed(chunk):
            if isinstance(message, Start):
                load(connection, mode)
            elif mode == "die":
                os._exit(9)
            elif isinstance(message, AskExperts) and mode != "hold":
                num_asked += 1
                report = ExpertReport(float(num_asked), [])
                connection.sendall(encode_frame(Experts(message.query_id, report)))
            for step in steps_of(message, mode):
                connection.sendall(encode_frame(step))


if __name__ == "__main__":
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    main(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
