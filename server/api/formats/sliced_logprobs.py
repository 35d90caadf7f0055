"""Render the logprobs of a choice in slices, so that a large reply never keeps the event loop for long."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from server.api.formats.json_pieces import JsonList
from server.generation.choice import Position

VALUES_PER_TURN = 4096  # log probabilities that are rendered at once: 1 to 2 ms

Logprobs = Mapping[str, Sequence[object] | JsonList]  # lists with one entry per position


async def sliced_logprobs(
    positions: Sequence[Position],
    to_logprobs: Callable[[Sequence[Position]], Logprobs | None],
    next_turn: Callable[[], Awaitable[None]],
) -> Logprobs | None:
    """Return `to_logprobs(positions)`; if they are long its lists are rendered, in slices.

    Waits for `next_turn` before each slice.
    """
    size = VALUES_PER_TURN // _values_per_position(positions)
    if len(positions) <= size:
        return to_logprobs(positions)
    lists: dict[str, JsonList] = {}
    for first in range(0, len(positions), size):
        await next_turn()
        for name, entries in (to_logprobs(positions[first : first + size]) or {}).items():
            if not isinstance(entries, JsonList):
                lists.setdefault(name, JsonList()).add(entries)
    return lists


def num_logprob_values(positions: Sequence[Position]) -> int:
    """Return the number of log probabilities at these positions."""
    return len(positions) * _values_per_position(positions)


def _values_per_position(positions: Sequence[Position]) -> int:
    scored = positions[-1].logprobs if positions else None
    return 1 + (len(scored.top_ids) if scored else 0)
