"""Each row gets the options of its own request, and each request the expert ids of its own rows."""

from dataclasses import replace

import pytest
import torch

from engine.execution.experts.routing import build_routing, copy_expert_ids, expert_choices
from engine.scheduling.expert_usage import ExpertUsage
from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan import Chunk
from engine.types import Request, SamplingParams
from tests.support.kernels.attention_cases import Heads

CPU = torch.device("cpu")
E = 4
MODEL = replace(Heads().config, num_experts=E, experts_per_token=2, num_layers=2)
MASK = [[True, False, True, True], [False, True, True, True]]


def chunk(request_id: int, length: int, **fields: object) -> Chunk:
    request = Request(request_id, [5] * 9, SamplingParams(), **fields)  # type: ignore[arg-type]
    usage = ExpertUsage(request, E) if request.expert_routing else None
    sequence = Sequence(request, (0, 0), 20)
    sequence.experts = usage
    return Chunk(sequence, 0, length, True, True)


def test_a_network_without_experts_has_no_routing() -> None:
    assert build_routing([chunk(1, 3)], replace(MODEL, num_experts=0, experts_per_token=0), CPU) is None


def test_rows_have_their_requests_k_and_mask() -> None:
    chunks = [chunk(1, 2), chunk(2, 1, experts_per_token=3, expert_mask=MASK), chunk(3, 3, experts_per_token=1)]
    routing = build_routing(chunks, MODEL, CPU)
    assert routing is not None and routing.masks is not None and routing.mask_rows is not None
    assert routing.experts_per_token.tolist() == [2, 2, 3, 1, 1, 1]
    rows = [routing.masks[row].tolist() for row in routing.mask_rows.tolist()]
    all_on = [[True] * E] * 2
    assert rows == [all_on, all_on, MASK, all_on, all_on, all_on]
    assert routing.expert_ids.shape == (2, 6, 3)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_requests_get_the_ids_of_their_own_rows(k: int) -> None:
    chunks = [chunk(1, 2), chunk(2, 3, experts_per_token=k, expert_routing=True), chunk(3, 1)]
    routing = build_routing(chunks, MODEL, CPU)
    assert routing is not None
    routing.expert_ids.copy_(torch.arange(routing.expert_ids.numel()).view(routing.expert_ids.shape))
    expected = [[[int(routing.expert_ids[layer, row, i]) for i in range(k)] for row in (2, 3, 4)] for layer in (0, 1)]
    assert expert_choices(chunks, copy_expert_ids(chunks, routing)) == {2: expected}
    assert copy_expert_ids(chunks[:1], routing) is None
