"""Messages arrive unchanged, however the socket splits them."""

import random

import msgspec
import pytest

from engine.messages import Abort, Add, FrameReader, StepDone, ToEngine, encode_frame
from engine.messages import FromEngine as FromEngineUnion
from engine.token_constraints import token_constraints
from engine.types import Request, RequestOutput, SamplingParams, StepOutput, StepStats, Timing, TokenLogprobs


def test_messages_arrive_complete_and_in_order_however_the_stream_is_split() -> None:
    rng = random.Random(0)
    params = SamplingParams(
        constraints=token_constraints(logit_bias={5: -2.5}), stop_token_ids=(1, 2), seed=-(2**63), num_logprobs=3
    )
    messages: list[Add | Abort] = [
        Add([Request(n, list(range(n)), params, cache_salt="é")]) if n % 3 else Abort([n]) for n in range(40)
    ]
    stream = b"".join(encode_frame(message) for message in messages)
    reader: FrameReader[ToEngine] = FrameReader(ToEngine)
    received: list[ToEngine] = []
    while stream:
        cut = rng.randint(1, 300)
        received += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert received == messages


def test_a_step_crosses_unchanged() -> None:
    logprobs = [TokenLogprobs(3, -0.25, [3, 4], [-0.25, -1.5])]
    output = RequestOutput(1, [3], logprobs, finish_reason="stop", stop_token_id=3, timing=Timing(1.0, 2.0, 3.0, 4.0))
    step = StepDone(StepOutput([output], StepStats(num_running=2)))
    reader: FrameReader[FromEngineUnion] = FrameReader(FromEngineUnion)
    assert reader.feed(encode_frame(step)) == [step]


@pytest.mark.parametrize("body", [b"\xc1", b"", b"\x81\xa4type\xa5Abor\xff"], ids=["type", "empty", "name"])
def test_an_invalid_body_is_rejected(body: bytes) -> None:
    reader: FrameReader[ToEngine] = FrameReader(ToEngine)
    with pytest.raises(msgspec.DecodeError):
        reader.feed(len(body).to_bytes(4, "big") + body)
