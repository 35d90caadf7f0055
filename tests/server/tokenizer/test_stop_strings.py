"""server/tokenizer/stop_strings.py: the same cut at every split, and no text sent that belongs to a stop string."""

from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.tokenizer.stop_strings import StopStringMatcher

TEXTS = st.text(alphabet="ab\u00e9", max_size=30)
STOPS = st.lists(st.text(alphabet="ab\u00e9", min_size=1, max_size=4), max_size=4)


def naive(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Check every beginning of the text, shortest first, for a stop string at its end."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


def streamed(pieces: list[str], stops: list[str], include: bool) -> tuple[str, str | None]:
    matcher = StopStringMatcher(stops, include)
    sent = ""
    for piece in pieces:
        safe, matched = matcher.push(piece)
        sent += safe
        if matched is not None:
            return sent, matched
    return sent + matcher.finish(), None


@given(TEXTS, STOPS, st.booleans(), st.lists(st.integers(0, 30), max_size=8))
@settings(deadline=None)
@example("xabcd", ["abcd", "bc"], False, [1, 2, 3, 4])
def test_the_cut_is_the_same_at_every_split(text: str, stops: list[str], include: bool, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    expected = naive(text, stops, include)
    assert streamed(pieces, stops, include) == expected
    assert streamed(list(text), stops, include) == expected
    assert streamed([text], stops, include) == expected


@given(TEXTS, STOPS)
@settings(deadline=None)
def test_only_what_could_still_become_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    matcher = StopStringMatcher(stops)
    safe, matched = matcher.push(text)
    held = text[len(safe) :]
    assert matched is not None or not held or any(stop.startswith(held) for stop in stops)


def test_the_text_of_a_stop_string_is_sent_only_on_request() -> None:
    assert streamed(["one EN", "D two"], ["END"], include=False) == ("one ", "END")
    assert streamed(["one EN", "D two"], ["END"], include=True) == ("one END", "END")


def test_of_two_stop_strings_that_end_together_the_longer_one_counts() -> None:
    assert streamed(["xab"], ["b", "ab"], include=False) == ("x", "ab")
