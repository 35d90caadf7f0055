"""Tokens coloured by how surprising they were: /tokens in a chat."""

import math
from collections.abc import Mapping
from typing import Any, TextIO

from server.cli.colours import Colours
from server.cli.terminal_text import escape_controls

LIKELY, UNLIKELY = 0.5, 0.1  # probabilities: above the first unmarked, below the second marked most


def painted(choice: Mapping[str, Any], colours: Colours) -> str:
    """Return the new text of a choice of a chunk, token by token: yellow below 50 %, red below 10 %.

    Without colours a surprising token is followed by its probability, as in "cat{3%}". The choice has logprobs.
    """
    entries = (choice.get("logprobs") or {}).get("content") or []
    return "".join(_painted(entry["token"], math.exp(entry["logprob"]), colours) for entry in entries)


def write_painted(choice: Mapping[str, Any], colours: Colours, stream: TextIO) -> None:
    """Write the new text of a choice; control characters are those of the colours only."""
    stream.write(painted(choice, colours))
    stream.flush()


def _painted(token: str, probability: float, colours: Colours) -> str:
    text = escape_controls(token)
    if probability >= LIKELY:
        return text
    if not colours.is_on:
        return text if probability >= UNLIKELY else f"{text}{{{probability:.0%}}}"
    return colours.bad(text) if probability < UNLIKELY else colours.warning(text)
