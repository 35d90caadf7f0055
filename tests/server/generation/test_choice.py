"""server/generation/choice.py: whatever the split of the engine's outputs, the same text, tokens and end."""

import itertools

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import Request, RequestOutput, SamplingParams
from server.engine_client.output_collector import merge_outputs
from server.generation.choice import Choice, Delta, StopConditions, merge_deltas
from server.tokenizer.detokenizer import Detokenizer
from server.tokenizer.stop_strings import StopStringMatcher
from tests.support.fake_engine import EOS, outputs_for
from tests.support.serving import tokenizer

TEXT = "Gr\u00fc\u00dfe \U0001f600 and so on, and so forth."


def outputs(ids: list[int], **params: object) -> list[RequestOutput]:
    given_params = {"max_tokens": len(ids), "num_logprobs": 0, **params}
    return list(outputs_for(Request(1, [1], msgspec.convert(given_params, SamplingParams)), ids))


def choice(stop: list[str] | None = None, ending: StopConditions | None = None) -> Choice:
    stop_matcher = StopStringMatcher(stop or [], (ending or StopConditions()).include_stop)
    return Choice(0, Detokenizer(tokenizer()), stop_matcher, ending or StopConditions())


def told(a_choice: Choice, steps: list[RequestOutput]) -> Delta:
    """All deltas of a choice, as one."""
    deltas = []
    for step in steps:
        if a_choice.finish_reason is None and (delta := a_choice.push(step)):
            deltas.append(delta)
    return merge_deltas(deltas)


def ids_of(text: str) -> list[int]:
    return tokenizer().encode(text, add_special_tokens=False)


@given(
    cuts=st.lists(st.integers(1, 4), min_size=60, max_size=60),
    stop=st.sampled_from(["", "so", "and so on", "\U0001f600 a"]),
)
@settings(max_examples=60, deadline=None)
def test_a_lagging_reader_gets_the_same_text_tokens_and_end(cuts: list[int], stop: str) -> None:
    steps = outputs([*ids_of(TEXT), EOS])
    merged, rest = [], steps
    for cut in cuts:
        if rest:
            merged.append(merge_outputs(rest[:cut]))
            rest = rest[cut:]
    stops = [stop] if stop else []
    one, other = told(choice(stops), steps), told(choice(stops), merged)
    assert one == other
    assert one.text == TEXT.split(stop)[0] if stop else one.text == TEXT


def test_a_stop_string_ends_the_choice_at_the_token_that_completed_it() -> None:
    delta = told(choice(["so on"]), outputs([*ids_of(TEXT), EOS]))
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("Gr\u00fc\u00dfe \U0001f600 and ", "stop", "so on")
    assert tokenizer().decode(delta.token_ids) == "Gr\u00fc\u00dfe \U0001f600 and so on"
    assert len(delta.positions) == len(delta.token_ids)


def test_stop_strings_are_not_looked_for_in_the_first_min_tokens() -> None:
    ids = ids_of("so it is so")
    delta = told(choice(["so"], StopConditions(min_tokens=2)), outputs([*ids, EOS]))
    assert delta.text == "so it is "


def test_a_stop_token_is_not_shown_unless_asked_for() -> None:
    ids = ids_of("one two three")
    steps = outputs(ids, stop_token_ids=(ids[1],))
    hidden = told(choice(ending=StopConditions(stop_token_ids=frozenset({ids[1]}))), steps)
    shown = told(choice(ending=StopConditions(stop_token_ids=frozenset({ids[1]}), include_stop=True)), steps)
    assert (hidden.text, hidden.stop_reason) == ("one", ids[1])
    assert (shown.text, shown.stop_reason) == ("one two", ids[1])
    assert hidden.token_ids == shown.token_ids == ids[:2]


def test_the_end_token_has_no_stop_reason_and_counts() -> None:
    a_choice = choice()
    delta = told(a_choice, outputs([*ids_of("hello"), EOS]))
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("hello", "stop", None)
    assert a_choice.num_tokens == len(ids_of("hello")) + 1


def test_the_first_delta_comes_with_the_first_output_even_without_text() -> None:
    half = ids_of("\U00010348")  # the space that texts start with, then four bytes
    a_choice = choice()
    first = a_choice.push(outputs([*half, EOS])[0])
    assert first == Delta(0, is_first=True)
    assert a_choice.push(outputs([*half, EOS])[1]) is None


def test_a_text_that_ends_inside_a_character_ends_in_one_replacement_character() -> None:
    ids = ids_of("a\U00010348")
    assert told(choice(), outputs(ids[:-1])).text == "a\ufffd"


def test_text_held_for_a_stop_string_is_given_at_the_end() -> None:
    assert told(choice(["forth.!"]), outputs([*ids_of(TEXT), EOS])).text == TEXT


def test_text_offsets_point_into_the_text() -> None:
    delta = told(choice(), outputs([*ids_of("one two three"), EOS]))
    offsets = [position.text_offset for position in delta.positions]
    assert [delta.text[start:end] for start, end in itertools.pairwise(offsets)] == ["one", " two", " three"]
