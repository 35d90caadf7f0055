"""server/chat/repair.py: broken conversations become those that mistral-common would make of them; valid ones stay."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest as MistralRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from server.chat.repair import SystemPlace, repair_conversation
from server.chat.template import ChatTemplate
from server.chat.turns import Turn
from server.tokenizer.tokenizer import Tokenizer

ROLES = {"s": "system", "u": "user", "a": "assistant"}
MISTRALS = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}
PLACES: tuple[SystemPlace, ...] = get_args(SystemPlace)

# Conversations that mistral-common accepts: no system message between answer and question, a question at the end.
TAKEN_BY_MISTRAL = st.from_regex(r"\As{0,2}(a{0,2}(u{1,2}s?a{1,2}){0,2}u{1,2}s{0,2}|s)\Z")

WITHOUT_SYSTEM = (  # as in the first release of Mixtral-8x7B-Instruct
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ START + message['content'] + END }}"
    "{% else %}{{ SPACE + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
DROPS_SYSTEM = WITHOUT_SYSTEM.replace("in messages", "in messages if message['role'] != 'system'")


def conversation(letters: str) -> list[Turn]:
    """Build a conversation from its roles: "us" is a user message "u0" and a system message "s1"."""
    return [Turn(ROLES[letter], f"{letter}{index}") for index, letter in enumerate(letters)]


def as_letters(turns: list[Turn]) -> str:
    return "".join(turn.template_role[0] for turn in turns)


def mistral_ids(oracle: MistralTokenizer, turns: list[Turn]) -> list[int]:
    messages = [MISTRALS[turn.template_role](content=turn.text) for turn in turns]
    return list(oracle.encode_chat_completion(MistralRequest(messages=messages)).tokens)


@given(letters=st.text("sua", min_size=1, max_size=12), place=st.sampled_from(PLACES))
def test_roles_alternate_after_the_system_message_and_repairing_again_changes_nothing(
    letters: str, place: SystemPlace
) -> None:
    turns, repairs = repair_conversation(conversation(letters), place)
    roles = as_letters(turns)
    others = roles.removeprefix("s")
    assert others == ("ua" * len(others))[: len(others)] != ""
    assert place == "own_message" or others == roles
    assert repair_conversation(turns, place) == (turns, [])
    assert bool(repairs) == (turns != conversation(letters))


@given(letters=st.text("sua", min_size=1, max_size=12), place=st.sampled_from(PLACES))
def test_every_text_is_kept_once_and_in_order(letters: str, place: SystemPlace) -> None:
    turns, _ = repair_conversation(conversation(letters), place)
    texts = [text for turn in turns for text in turn.text.split("\n\n") if text]
    said = [turn.text for turn in conversation(letters)]
    assert sorted(texts) == sorted(said)
    for kind in ("s", "ua"):
        assert [text for text in texts if text[0] in kind] == [text for text in said if text[0] in kind]


@given(letters=st.text("sua", min_size=1, max_size=12).filter(lambda letters: letters[-1] == "a"))
def test_an_answer_to_be_continued_stays_at_the_end(letters: str) -> None:
    turns, _ = repair_conversation(conversation(letters), "own_message")
    assert turns[-1].template_role == "assistant"
    assert turns[-1].text.endswith(f"a{len(letters) - 1}")


@pytest.mark.parametrize("letters", ["u", "su", "uau", "suauau", "ua", "sua"])
def test_a_conversation_in_order_is_left_alone(letters: str) -> None:
    assert repair_conversation(conversation(letters), "own_message") == (conversation(letters), [])


@pytest.mark.parametrize(
    ("letters", "texts", "repairs"),
    [
        ("uu", ["u0\n\nu1"], ["joined-turns"]),
        ("uaau", ["u0", "a1\n\na2", "u3"], ["joined-turns"]),
        ("ssu", ["s0\n\ns1", "u2"], ["joined-turns"]),
        ("us", ["s1", "u0"], ["moved-system"]),
        ("usu", ["s1", "u0\n\nu2"], ["moved-system", "joined-turns"]),
        ("suasu", ["s0\n\ns3", "u1", "a2", "u4"], ["moved-system", "joined-turns"]),
        ("au", ["", "a0", "u1"], ["added-user"]),
        ("sau", ["s0", "", "a1", "u2"], ["added-user"]),
        ("s", ["s0", ""], ["added-user"]),
        ("uas", ["u0", "a1", "s2"], ["system-as-user"]),
        ("asus", ["s1\n\ns3", "", "a0", "u2"], ["moved-system", "joined-turns", "added-user"]),
    ],
)
def test_each_repair_is_made_and_named(letters: str, texts: list[str], repairs: list[str]) -> None:
    turns, names = repair_conversation(conversation(letters), "own_message")
    assert ([turn.text for turn in turns], names) == (texts, repairs)


def test_an_empty_text_leaves_no_blank_line_where_turns_are_joined() -> None:
    turns, _ = repair_conversation(
        [Turn("user", ""), Turn("user", "a"), Turn("user", ""), Turn("user", "b")], "own_message"
    )
    assert turns == [Turn("user", "a\n\nb")]


def test_the_ids_are_those_of_mistral_commons_own_repair(v1: Tokenizer, v3: Tokenizer, scale: int) -> None:
    pairs = [(ChatTemplate(None, v1), MistralTokenizer.v1()), (ChatTemplate(None, v3), MistralTokenizer.v3())]

    @given(letters=TAKEN_BY_MISTRAL)
    @settings(max_examples=60 * scale, deadline=None)
    def are_equal(letters: str) -> None:
        turns = conversation(letters)
        for template, oracle in pairs:
            assert template.render(repair_conversation(turns, template.system_place)[0]) == mistral_ids(oracle, turns)

    are_equal()


@pytest.mark.parametrize(
    ("letters", "valid"),
    [
        ("usu", [("system", "s1"), ("user", "u0\n\nu2")]),
        ("uasu", [("system", "s2"), ("user", "u0"), ("assistant", "a1"), ("user", "u3")]),
        ("suasu", [("system", "s0\n\ns3"), ("user", "u1"), ("assistant", "a2"), ("user", "u4")]),
        ("uas", [("user", "u0"), ("assistant", "a1"), ("user", "s2")]),
    ],
)
def test_a_conversation_that_mistral_common_refuses_gets_the_ids_of_the_valid_one(
    v1: Tokenizer, v3: Tokenizer, letters: str, valid: list[tuple[str, str]]
) -> None:
    for ours, oracle in ((v1, MistralTokenizer.v1()), (v3, MistralTokenizer.v3())):
        template = ChatTemplate(None, ours)
        ids = template.render(repair_conversation(conversation(letters), template.system_place)[0])
        assert ids == mistral_ids(oracle, [Turn(role, text) for role, text in valid])


@pytest.mark.parametrize("source", [WITHOUT_SYSTEM, DROPS_SYSTEM], ids=["refuses", "drops"])
@pytest.mark.parametrize("letters", ["su", "suau", "sau", "uasu"])
def test_a_template_that_takes_no_system_message_has_its_text_in_mistrals_place(
    v1: Tokenizer, v3: Tokenizer, source: str, letters: str
) -> None:
    for ours, oracle, start, end, space in (
        (v1, MistralTokenizer.v1(), "[INST] ", " [/INST]", " "),
        (v3, MistralTokenizer.v3(), "[INST]", "[/INST]", ""),
    ):
        own = source.replace("START", repr(start)).replace("END", repr(end)).replace("SPACE", repr(space))
        template = ChatTemplate(own, ours)
        turns, repairs = repair_conversation(conversation(letters), template.system_place)
        assert "folded-system" in repairs
        assert template.render(turns) == mistral_ids(
            oracle, repair_conversation(conversation(letters), "own_message")[0]
        )


def test_an_empty_system_message_folds_into_nothing() -> None:
    turns, repairs = repair_conversation([Turn("system", ""), Turn("user", "a")], "first_user_turn")
    assert (turns, repairs) == ([Turn("user", "a")], ["folded-system"])
