"""server/tools/call_parser.py: the same calls from every split of an answer."""

import random

from server.tools.call_parser import ToolCallParser
from tests.support.tool_calling import ONE, TWO


def parse(pieces: list[str]) -> tuple[str, list[tuple[str, str]], bool]:
    """Return the plain text, the names and arguments of all calls, and whether their list was complete."""
    parser = ToolCallParser()
    words, calls = "", []
    for piece in pieces:
        more, parts = parser.push(piece)
        words += more
        for part in parts:
            if part.name is not None:
                calls.append([part.name, ""])
            calls[part.index][1] += part.arguments
    return words + parser.finish(), [(name, arguments) for name, arguments in calls], parser.is_complete


def test_every_split_of_a_text_gives_the_same_calls(scale: int) -> None:
    rng = random.Random(3)
    for text in [ONE, TWO, "[TOOL", "[TOOL_CALLX] []", "plain", "", *(TWO[:end] for end in range(0, len(TWO), 3))]:
        whole = parse([text])
        for _ in range(20 * scale):
            cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 9)))
            pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
            assert parse(pieces) == whole, pieces


def test_a_text_that_only_looks_like_calls_is_a_text() -> None:
    assert parse(["[TOOL"]) == ("[TOOL", [], False)
    assert parse(["see ", "[TOOL_CALLS] [...]"]) == ("see [TOOL_CALLS] [...]", [], False)
