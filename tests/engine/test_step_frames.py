"""engine/step_frames.py: a step in messages of bounded size."""

import random

from engine.messages import OutputPart, StepDone, StepPart, encode_frame
from engine.step_frames import MAX_FRAME_VALUES, OUTPUT_VALUES, num_output_values, step_messages, with_parts
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
            expert_routing=rng.choice([None, [[[1, 2]] * 32] * rng.randrange(1, 400)]),
            gate_logits=rng.choice([None, [bytes(1024)] * rng.randrange(1, 9)]),
        )
        for n in range(60)
    ]
    stats = StepStats(num_running=2)
    *parts, last = step_messages(StepOutput(outputs, stats), [1])
    assert isinstance(last, StepDone) and (last.step.stats, last.aborted) == (stats, [1])
    received: list[RequestOutput] = []
    ahead: dict[int, list[RequestOutput]] = {}
    for message in [*parts, StepPart(last.step.outputs)]:
        if isinstance(message, OutputPart):
            assert num_output_values(message.output) <= MAX_FRAME_VALUES + OUTPUT_VALUES
            ahead.setdefault(message.output.request_id, []).append(message.output)
            continue
        assert isinstance(message, StepPart)
        assert len(message.outputs) == 1 or sum(map(num_output_values, message.outputs)) <= MAX_FRAME_VALUES
        received += [with_parts(ahead.pop(output.request_id, []), output) for output in message.outputs]
    assert not ahead and received == outputs


def test_the_experts_of_a_long_prompt_are_sent_in_frames_of_bounded_size() -> None:
    routing, gates = [[[i % 8, 7]] * 32 for i in range(3000)], [bytes([i % 256]) * 1024 for i in range(3000)]
    output = RequestOutput(4, finish_reason="length", expert_routing=routing, gate_logits=gates)
    *parts, last = step_messages(StepOutput([output], StepStats()), [])
    assert isinstance(last, StepDone) and len(parts) > 3000 * 64 // MAX_FRAME_VALUES
    assert all(isinstance(part, OutputPart) and len(encode_frame(part)) < 1 << 18 for part in parts)
    ahead = [part.output for part in parts if isinstance(part, OutputPart)]
    assert [with_parts(ahead, each) for each in last.step.outputs] == [output]


def test_embeddings_are_sent_in_frames_of_bounded_size() -> None:
    outputs = [RequestOutput(i, finish_reason="stop", embedding=bytes([i % 256]) * 4 * 4096) for i in range(400)]
    *parts, last = step_messages(StepOutput(outputs, StepStats()), [])
    assert isinstance(last, StepDone) and all(isinstance(part, StepPart) for part in parts)
    sent = [*(output for part in parts if isinstance(part, StepPart) for output in part.outputs), *last.step.outputs]
    assert sent == outputs
    assert len(parts) >= 2 and all(len(encode_frame(message)) < 2 << 20 for message in (*parts, last))
