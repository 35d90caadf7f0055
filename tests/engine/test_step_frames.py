"""engine/step_frames.py: a step in messages of bounded size."""

import random

import msgspec

from engine.messages import PromptScores, StepDone, StepPart, encode_frame
from engine.step_frames import MAX_FRAME_VALUES, num_output_values, step_messages
from engine.types import RequestOutput, StepOutput, StepStats, TokenLogprobs


def scores(count: int, num_top: int) -> list[TokenLogprobs]:
    return [TokenLogprobs(i, -1.0 * i, list(range(num_top)), [-0.5] * num_top) for i in range(count)]


def test_a_small_step_is_one_message() -> None:
    step = StepOutput([RequestOutput(n, [5], scores(1, 20)) for n in range(100)], StepStats(num_running=3))
    assert list(step_messages(step, [7])) == [StepDone(step, [7])]


def test_a_large_step_arrives_whole_in_messages_of_bounded_size() -> None:
    rng = random.Random(0)
    outputs = [
        RequestOutput(
            n,
            [5] * rng.randrange(3),
            scores(rng.randrange(40), 20),
            prompt_logprobs=rng.choice([None, scores(rng.randrange(5000), rng.choice([0, 20]))]),
            expert_routing=rng.choice([None, [[[1, 2]] * 32] * rng.randrange(9)]),
            gate_logits=rng.choice([None, [bytes(1024)] * rng.randrange(9)]),
        )
        for n in range(60)
    ]
    stats = StepStats(num_running=2)
    *parts, last = step_messages(StepOutput(outputs, stats), [1])
    assert isinstance(last, StepDone) and (last.step.stats, last.aborted) == (stats, [1])
    received: list[RequestOutput] = []
    early: dict[int, list[TokenLogprobs]] = {}
    for message in [*parts, StepPart(last.step.outputs)]:
        if isinstance(message, PromptScores):
            assert len(message.prompt_logprobs) * (2 + 2 * len(message.prompt_logprobs[0].top_ids)) <= MAX_FRAME_VALUES
            early.setdefault(message.request_id, []).extend(message.prompt_logprobs)
            continue
        assert isinstance(message, StepPart)
        assert len(message.outputs) == 1 or sum(map(num_output_values, message.outputs)) <= MAX_FRAME_VALUES
        for output in message.outputs:
            ahead = early.pop(output.request_id, None)
            rest = output.prompt_logprobs
            received.append(
                output if ahead is None else msgspec.structs.replace(output, prompt_logprobs=ahead + (rest or []))
            )
    assert not early and received == outputs


def test_embeddings_are_sent_in_frames_of_bounded_size() -> None:
    outputs = [RequestOutput(i, finish_reason="stop", embedding=bytes([i % 256]) * 4 * 4096) for i in range(400)]
    *parts, last = step_messages(StepOutput(outputs, StepStats()), [])
    assert isinstance(last, StepDone) and all(isinstance(part, StepPart) for part in parts)
    sent = [*(output for part in parts if isinstance(part, StepPart) for output in part.outputs), *last.step.outputs]
    assert sent == outputs
    assert len(parts) >= 2 and all(len(encode_frame(message)) < 2 << 20 for message in (*parts, last))
