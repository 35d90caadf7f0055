"""Work of a step, as far as it decides how long the step takes."""

import msgspec

from engine.scheduling.step_plan import Chunk, StepPlan


class StepShape(msgspec.Struct, frozen=True):
    """Counts of one step."""

    num_rows: int  # positions that it computes
    num_logits: int  # rows that a token is sampled for
    decode_positions: int  # that rows of decoding requests see, themselves included
    prompt_pairs: int  # of a row of a prompt and a position that it sees


def shape_of(plan: StepPlan, window: int | None) -> StepShape:
    """Return the work of a plan. `window`: of attention, in positions.

    Rows 4 and 5 of a prompt and a decode row at position 9, without a window: 3 rows, 2 logits, 10 positions, 5 + 6
    pairs.
    """
    num_logits = decode_positions = prompt_pairs = 0
    for chunk in plan.chunks:
        if chunk.is_prefill:
            num_logits += chunk.samples
            prompt_pairs += _num_seen(chunk, window)
        else:
            num_logits += chunk.length
            decode_positions += _num_seen(chunk, window)
    return StepShape(plan.num_tokens, num_logits, decode_positions, prompt_pairs)


def _num_seen(chunk: Chunk, window: int | None) -> int:
    """Return the sum over the chunk's rows of the positions that each sees."""
    start, length = chunk.start, chunk.length
    num_growing = length if window is None else min(max(window - start, 0), length)  # rows that see all before them
    seen = num_growing * start + num_growing * (num_growing + 1) // 2
    return seen if window is None else seen + (length - num_growing) * window
