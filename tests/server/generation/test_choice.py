"""server/generation/choice.py: text, tokens and end do not depend on how the engine's outputs are split."""

import itertools

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import Request, RequestOutput, SamplingParams
from server.engine_client.output_collector import merge_outputs
from server.generation.choice import Choice, Delta, StopConditions, merge_deltas
from server.tokenizer.detokenizer import Detokenizer
from server.tokenizer.stop_strings import StopStringMatcher
from tests.support.servers.fake_engine import EOS, outputs_for
from tests.support.servers.serving import tokenizer

TEXT = "Gr\u00fc\u00dfe \U0001f600 and so on, and so forth."


def outputs(ids: list[int], **params: object) -> list[RequestOutput]:
    given_params = {"max_tokens": len(ids), "num_logprobs": 0, **params}
    return list(outputs_for(Request(1, [1], msgspec.convert(given_params, SamplingParams)), ids))


def choice(stop: list[str] | None = None, stop_conditions: StopConditions | None = None) -> Choice:
    stop_matcher = StopStringMatcher(stop or [], (stop_conditions or StopConditions()).include_stop)
    return Choice(0, Detokenizer(tokenizer()), stop_matcher, stop_conditions or StopConditions())


def merged_deltas(a_choice: Choice, steps: list[RequestOutput]) -> Delta:
    """Push the outputs into a choice and merge its deltas."""
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
    one, other = merged_deltas(choice(stops), steps), merged_deltas(choice(stops), merged)
    assert one == other
    assert one.text == TEXT.split(stop)[0] if stop else one.text == TEXT


def test_a_stop_string_ends_the_choice_at_the_token_that_completed_it() -> None:
    delta = merged_deltas(choice(["so on"]), outputs([*ids_of(TEXT), EOS]))
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("Gr\u00fc\u00dfe \U0001f600 and ", "stop", "so on")
    assert tokenizer().decode(delta.token_ids) == "Gr\u00fc\u00dfe \U0001f600 and so on"
    assert len(delta.positions) == len(delta.token_ids)


def test_stop_strings_in_the_first_min_tokens_are_ignored() -> None:
    ids = ids_of("so it is so")
    delta = merged_deltas(choice(["so"], StopConditions(min_tokens=2)), outputs([*ids, EOS]))
    assert delta.text == "so it is "


def test_a_stop_token_is_hidden_unless_requested() -> None:
    ids = ids_of("one two three")
    steps = outputs(ids, stop_token_ids=(ids[1],))
    hidden = merged_deltas(choice(stop_conditions=StopConditions(stop_token_ids=frozenset({ids[1]}))), steps)
    shown = merged_deltas(
        choice(stop_conditions=StopConditions(stop_token_ids=frozenset({ids[1]}), include_stop=True)), steps
    )
    assert (hidden.text, hidden.stop_reason) == ("one", ids[1])
    assert (shown.text, shown.stop_reason) == ("one two", ids[1])
    assert hidden.token_ids == shown.token_ids == ids[:2]


def test_the_end_token_has_no_stop_reason_and_counts() -> None:
    a_choice = choice()
    delta = merged_deltas(a_choice, outputs([*ids_of("hello"), EOS]))
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
    assert merged_deltas(choice(), outputs(ids[:-1])).text == "a\ufffd"


def test_text_that_could_start_a_stop_string_is_sent_at_the_end() -> None:
    assert merged_deltas(choice(["forth.!"]), outputs([*ids_of(TEXT), EOS])).text == TEXT


def test_text_offsets_point_into_the_text() -> None:
    delta = merged_deltas(choice(), outputs([*ids_of("one two three"), EOS]))
    offsets = [position.text_offset for position in delta.positions]
    assert [delta.text[start:end] for start, end in itertools.pairwise(offsets)] == ["one", " two", " three"]
