"""Split the outputs of a step into messages of bounded size, so that the API process never decodes one for long."""

from collections.abc import Iterator, Sequence

import msgspec

from engine.messages import OutputPart, StepDone, StepPart
from engine.types import RequestOutput, StepOutput, TokenLogprobs

MAX_FRAME_VALUES = 1 << 13  # token ids, log probabilities and expert ids of one frame: about 1 ms to decode
OUTPUT_VALUES = 8  # the other fields of an output cost as much as this many values
BYTES_PER_VALUE = 256  # of embeddings and gate logits, which are copied and not decoded


def step_messages(step: StepOutput, aborted: list[int]) -> Iterator[OutputPart | StepPart | StepDone]:
    """Yield the messages of one step, in order; the last one is its StepDone."""
    part: list[RequestOutput] = []
    num_values = 0
    for output in step.outputs:
        if output.prompt_logprobs:
            for message in _early_scores(output):
                output = msgspec.structs.replace(output, prompt_logprobs=[])
                yield message
        for message in _early_experts(output):
            output = msgspec.structs.replace(output, expert_routing=None, gate_logits=None)
            yield message
        size = num_output_values(output)
        if part and num_values + size > MAX_FRAME_VALUES:
            yield StepPart(part)
            part, num_values = [], 0
        part.append(output)
        num_values += size
    yield StepDone(StepOutput(part, step.stats), aborted)


def with_parts(parts: Sequence[RequestOutput], output: RequestOutput) -> RequestOutput:
    """Return an output with the lists of its parts, which were sent ahead, before its own."""
    scores, routing, gates = (
        [value for part in (*parts, output) for value in getattr(part, name) or []]
        for name in ("prompt_logprobs", "expert_routing", "gate_logits")
    )
    return msgspec.structs.replace(
        output,
        prompt_logprobs=scores if scores else output.prompt_logprobs,
        expert_routing=routing or None,
        gate_logits=gates or None,
    )


def _early_scores(output: RequestOutput) -> Iterator[OutputPart]:
    """Yield all scores of a long prompt; nothing if they fit into a frame."""
    scores = output.prompt_logprobs or []
    per_position = _num_values(scores[:1])
    if len(scores) * per_position <= MAX_FRAME_VALUES:
        return
    size = max(1, MAX_FRAME_VALUES // per_position)
    for first in range(0, len(scores), size):
        yield OutputPart(RequestOutput(output.request_id, prompt_logprobs=scores[first : first + size]))


def _early_experts(output: RequestOutput) -> Iterator[OutputPart]:
    """Yield the experts and gate logits of many positions; nothing if they fit into a frame."""
    routing, gates = output.expert_routing or [], output.gate_logits or []
    num_values, num_positions = _num_expert_values(output), max(len(routing), len(gates))
    if num_values <= MAX_FRAME_VALUES:
        return
    size = max(1, num_positions * MAX_FRAME_VALUES // num_values)
    for first in range(0, num_positions, size):
        part = slice(first, first + size)
        yield OutputPart(
            RequestOutput(output.request_id, expert_routing=routing[part] or None, gate_logits=gates[part] or None)
        )


def num_output_values(output: RequestOutput) -> int:
    """Return how many values an output lists."""
    num_values = OUTPUT_VALUES + len(output.token_ids) + _num_expert_values(output)
    for scores in (output.logprobs, output.prompt_logprobs):
        if scores:
            num_values += _num_values(scores)
    if output.embedding:
        num_values += len(output.embedding) // BYTES_PER_VALUE
    return num_values


def _num_expert_values(output: RequestOutput) -> int:
    num_ids = sum(len(layer) for position in output.expert_routing or [] for layer in position)
    return num_ids + sum(map(len, output.gate_logits or [])) // BYTES_PER_VALUE


def _num_values(scores: list[TokenLogprobs]) -> int:
    """Return the number of ids and log probabilities. All positions of a request have equally many."""
    return len(scores) * (2 + 2 * len(scores[0].top_ids)) if scores else 0
