"""server/tokenizer/detokenizer.py: deltas add up to the text, at every split."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.tokenizer.detokenizer import Detokenizer
from server.tokenizer.tokenizer import Tokenizer
from tests.support.checkpoints.mistral_tokenizers import v1_tokenizer

# Half of the ids are byte pieces and control tokens, which are rare in ordinary text.
IDS = st.lists(st.integers(0, 258) | st.integers(0, 32_005), max_size=24)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return v1_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


def deltas(detokenizer: Detokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    edges = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    texts = [detokenizer.push(ids[start:end]) for start, end in pairwise(edges)]
    return [*texts, detokenizer.finish()]


@given(ids=IDS, cuts=st.lists(st.integers(0, 24), max_size=6), skip=st.booleans())
@settings(deadline=None)
def test_the_deltas_of_any_split_add_up_to_the_decoded_text(
    tokenizer: Tokenizer, ids: list[int], cuts: list[int], skip: bool
) -> None:
    whole = tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(deltas(Detokenizer(tokenizer, skip), ids, cuts)) == whole
    assert "".join(deltas(Detokenizer(tokenizer, skip), ids, list(range(len(ids))))) == whole


@given(text=st.text(max_size=20))
@settings(deadline=None)
def test_no_delta_of_valid_text_has_a_replacement_character(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    for delta in deltas(Detokenizer(tokenizer), ids, list(range(len(ids)))):
        assert "\ufffd" not in delta or "\ufffd" in text


@given(prompt=st.text(max_size=12), answer=st.text(max_size=12))
@settings(deadline=None)
def test_with_a_prompt_the_deltas_are_the_text_that_follows_it(tokenizer: Tokenizer, prompt: str, answer: str) -> None:
    prompt_ids = tokenizer.encode(prompt)
    ids = tokenizer.encode(answer, add_special_tokens=False)
    continued = tokenizer.decode(prompt_ids + ids)
    assert (
        tokenizer.decode(prompt_ids) + "".join(deltas(Detokenizer(tokenizer, True, prompt_ids), ids, [])) == continued
    )


def test_a_completion_keeps_the_space_that_a_chat_answer_does_not_start_with(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("truth", add_special_tokens=False)
    prompt = tokenizer.encode("It is a")
    assert Detokenizer(tokenizer, True, prompt).push(ids) == " truth"
    assert Detokenizer(tokenizer, True, prompt[:1]).push(ids) == "truth"
    assert Detokenizer(tokenizer).push(ids) == "truth"


def test_a_character_that_begins_in_the_prompt_is_returned_complete(tokenizer: Tokenizer) -> None:
    ids = [3 + byte for byte in "\U0001f600".encode()]  # byte pieces start at id 3
    assert Detokenizer(tokenizer, True, ids[:2]).push(ids[2:]) == "\U0001f600"


def test_an_id_beyond_the_vocabulary_adds_nothing_wherever_it_stands(tokenizer: Tokenizer) -> None:
    hello, beyond = 22557, tokenizer.vocab_size + 5
    for cut in range(4):
        detokenizer = Detokenizer(tokenizer)
        ids = [hello, beyond, hello, beyond]
        assert detokenizer.push(ids[:cut]) + detokenizer.push(ids[cut:]) == "Hello Hello"


def test_half_a_character_is_held_back_until_the_end(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push([3 + 0xE2]) == ""
    assert detokenizer.push([3 + 0x82]) == ""
    assert detokenizer.finish() == "\ufffd"


def test_choices_that_show_a_control_token_share_one_table(tokenizer: Tokenizer) -> None:
    """It is as long as the vocabulary."""
    bos, eos = tokenizer.special_token_id("<s>"), tokenizer.special_token_id("</s>")
    assert bos is not None and eos is not None
    ids = [bos, *tokenizer.encode("a", add_special_tokens=False), eos]
    for shown, text in ((eos, "a</s>"), (bos, "<s> a"), (eos, "a</s>")):
        assert Detokenizer(tokenizer, shown_ids=(shown,)).push(ids) == text
    first, second = (tokenizer.bytes_by_id(skip_special_tokens=True, shown_ids=(eos,)) for _ in range(2))
    assert first is second
    assert Detokenizer(tokenizer).push(ids) == "a"
    assert Detokenizer(tokenizer, False, shown_ids=(eos,)).push(ids) == "<s> a</s>"
