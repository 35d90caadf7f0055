"""Render the logprobs of a choice in slices, so that a large reply never keeps the event loop for long."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import orjson

from server.generation.choice import Position

VALUES_PER_TURN = 4096  # log probabilities that are rendered at once: 1 to 2 ms

Logprobs = Mapping[str, Sequence[object]]  # lists with one entry per position


async def sliced_logprobs(
    positions: Sequence[Position],
    to_logprobs: Callable[[Sequence[Position]], Logprobs | None],
    next_turn: Callable[[], Awaitable[None]],
) -> Logprobs | orjson.Fragment | None:
    """Return the logprobs of these positions: the JSON of `to_logprobs(positions)`, but made in slices if it is long.

    Waits for `next_turn` before each slice.
    """
    size = VALUES_PER_TURN // _values_per_position(positions)
    if len(positions) <= size:
        return to_logprobs(positions)
    parts: dict[str, list[bytes]] = {}
    for first in range(0, len(positions), size):
        await next_turn()
        for name, entries in (to_logprobs(positions[first : first + size]) or {}).items():
            parts.setdefault(name, []).append(orjson.dumps(entries)[1:-1])
    members = (orjson.dumps(name) + b":[" + b",".join(lists) + b"]" for name, lists in parts.items())
    return orjson.Fragment(b"{" + b",".join(members) + b"}")


def num_logprob_values(positions: Sequence[Position]) -> int:
    """Return the number of log probabilities at these positions."""
    return len(positions) * _values_per_position(positions)


def _values_per_position(positions: Sequence[Position]) -> int:
    scored = positions[-1].logprobs if positions else None
    return 1 + (len(scored.top_ids) if scored else 0)
