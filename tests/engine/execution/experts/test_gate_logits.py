"""Rows of a step whose gates are reported, and the logits by request."""

import struct

import torch
from msgspec.structs import replace

from engine.execution.experts.gate_logits import copy_gates, finish_gates, gate_rows
from engine.execution.fault_isolation import StepFault, isolate_faults
from engine.gate_logits import by_layer
from engine.scheduling.step_plan import Chunk, StepPlan, StepResult
from tests.engine.execution.experts.test_routing import CPU, MODEL, E
from tests.engine.execution.experts.test_routing import chunk as any_chunk


def chunk(request_id: int, start: int, length: int, **fields: object) -> Chunk:
    """Return a chunk of a request with 9 prompt tokens."""
    return replace(any_chunk(request_id, length, expert_routing=True, **fields), start=start)


CHUNKS = (
    chunk(1, 8, 3, gate_logits=True),  # position 8 is of the prompt
    chunk(2, 0, 2, gate_logits=True),
    chunk(3, 9, 1),
    chunk(4, 0, 2, gate_logits=True, prompt_routing=True),
)


def test_rows_are_completion_positions_and_prompt_positions_on_request() -> None:
    gates = gate_rows(CHUNKS, MODEL, CPU)
    assert gates is not None
    assert gates.rows.tolist() == [1, 2, 6, 7]
    assert (gates.logits.shape, gates.logits.dtype) == ((2, 4, E), torch.float32)
    assert gate_rows(CHUNKS[1:3], MODEL, CPU) is None


def test_each_request_gets_the_logits_of_its_own_rows() -> None:
    gates = gate_rows(CHUNKS, MODEL, CPU)
    assert gates is not None
    gates.logits.copy_(torch.arange(gates.logits.numel()).view(gates.logits.shape))
    found = finish_gates(copy_gates(CHUNKS, gates))
    row = [gates.logits[:, index].tolist() for index in range(4)]
    by_request = {key: [list(map(list, by_layer(packed, 2))) for packed in value] for key, value in found.items()}
    assert by_request == {1: row[:2], 4: row[2:]}
    assert finish_gates(copy_gates(CHUNKS, None)) == {}


def test_a_position_is_unpacked_by_layer() -> None:
    assert by_layer(struct.pack("<6f", *range(6)), 2) == [(0, 1, 2), (3, 4, 5)]


def test_the_parts_of_a_failed_step_report_their_positions_in_order() -> None:
    def run(plan: StepPlan) -> StepResult:
        if plan.num_tokens > 2:
            raise MemoryError
        return StepResult(
            {}, gate_logits={c.sequence.request_id: [bytes([p]) for p in positions(c)] for c in plan.chunks}
        )

    def positions(c: Chunk) -> range:
        return range(c.start, c.start + c.length)

    plan = StepPlan((chunk(1, 0, 4, gate_logits=True),))
    result = isolate_faults(run, plan, StepFault("memory", "", ""))
    assert result.gate_logits == {1: [bytes([p]) for p in range(4)]}
