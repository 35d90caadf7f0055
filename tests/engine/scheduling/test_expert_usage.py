"""Expert usage of one request, however its positions are cut into chunks and computed again."""

import random

import pytest

from engine.scheduling.expert_usage import ExpertUsage
from engine.types import Request, SamplingParams

NUM_LAYERS, NUM_EXPERTS, NUM_PROMPT, LENGTH = 2, 4, 7, 12


@pytest.mark.parametrize("seed", range(20))
def test_each_position_counts_once_however_often_it_is_computed(seed: int) -> None:
    rng = random.Random(seed)
    ids = [[rng.sample(range(NUM_EXPERTS), 2) for _ in range(LENGTH)] for _ in range(NUM_LAYERS)]
    usage = ExpertUsage(_request(), NUM_EXPERTS)
    position, routing = 0, []
    while position < LENGTH:
        if position and rng.random() < 0.3:
            position = 0  # preempted: everything is computed again
        length = rng.randint(1, LENGTH - position)
        usage.add(position, [layer[position : position + length] for layer in ids])
        position += length
        if rng.random() < 0.5:
            routing += usage.pop_routing()
    routing += usage.pop_routing()
    counts = [[sum(e in layer[p] for p in range(NUM_PROMPT)) for e in range(NUM_EXPERTS)] for layer in ids]
    assert usage.prompt_tokens() == counts
    assert routing == [[layer[p] for layer in ids] for p in range(NUM_PROMPT, LENGTH)]


def test_without_expert_routing_no_ids_are_kept() -> None:
    usage = ExpertUsage(_request(expert_routing=False), NUM_EXPERTS)
    usage.add(0, [[[0, 1]] * LENGTH] * NUM_LAYERS)
    assert usage.pop_routing() == []


def _request(expert_routing: bool = True) -> Request:
    return Request(0, [1] * NUM_PROMPT, SamplingParams(), expert_usage=True, expert_routing=expert_routing)


@pytest.mark.parametrize("from_prompt", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_gate_logits_come_once_with_the_ids_of_their_position(seed: int, from_prompt: bool) -> None:
    rng = random.Random(seed)
    request = Request(
        0, [1] * NUM_PROMPT, SamplingParams(), expert_routing=True, gate_logits=True, prompt_routing=from_prompt
    )
    usage, reported_from = ExpertUsage(request, NUM_EXPERTS), 0 if from_prompt else NUM_PROMPT
    ids = [[[position % NUM_EXPERTS] for position in range(LENGTH)]] * NUM_LAYERS
    position, gates, routing = 0, [], []
    while position < LENGTH:
        if position and rng.random() < 0.3:
            position = 0  # preempted: everything is computed again
        end = position + rng.randint(1, LENGTH - position)
        given = [bytes([p]) for p in range(max(position, reported_from), end)]
        usage.add(position, [layer[position:end] for layer in ids], given)
        position = end
        if rng.random() < 0.5:
            gates, routing = gates + usage.pop_gates(), routing + usage.pop_routing()
    assert gates + usage.pop_gates() == [bytes([p]) for p in range(reported_from, LENGTH)]
    assert len(routing + usage.pop_routing()) == LENGTH - reported_from
