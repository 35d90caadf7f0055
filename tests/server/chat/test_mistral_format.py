"""server/chat/mistral_format.py: the versions of Mistral's format, with mistral-common as the oracle."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest as MistralRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from server.chat.mistral_format import has_control_tokens
from server.chat.template import ChatTemplate
from server.errors import ApiError
from server.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tests.server.chat.test_template import TEXTS, conversation
from tests.support.checkpoints.byte_level import cut_tekken
from tests.support.checkpoints.mistral_tokenizers import V7, v7_tokenizer

MISTRALS = {"user": UserMessage, "assistant": AssistantMessage, "system": SystemMessage}


def mistral_ids(oracle: MistralTokenizer, turns: list[tuple[str, str]]) -> list[int]:
    messages = [MISTRALS[role](content=text) for role, text in turns]
    return list(oracle.encode_chat_completion(MistralRequest(messages=messages)).tokens)


def _of_tekken(path: Path, version: str) -> tuple[ChatTemplate, MistralTokenizer]:
    file = cut_tekken(path, version)
    return ChatTemplate(None, load_tokenizer(path)), MistralTokenizer.from_file(file)


def test_without_a_template_the_ids_are_mistral_commons(
    v1: Tokenizer, v3: Tokenizer, tmp_path: Path, scale: int
) -> None:
    pairs = [
        (ChatTemplate(None, v1), MistralTokenizer.v1()),
        (ChatTemplate(None, v3), MistralTokenizer.v3()),
        (ChatTemplate(None, v7_tokenizer(tmp_path)), MistralTokenizer.from_file(V7)),
        *(_of_tekken(tmp_path / f"tekken {version}", version) for version in ("v3", "v7", "v11", "v13")),
    ]

    @given(has_system=st.booleans(), texts=st.lists(TEXTS, min_size=6, max_size=6), num_answers=st.integers(0, 2))
    @settings(max_examples=60 * scale, deadline=None)
    def are_equal(has_system: bool, texts: list[str], num_answers: int) -> None:
        turns = [(role, texts[i]) for i, role in enumerate(["user", "assistant"] * num_answers + ["user"])]
        turns = [("system", texts[-1]), *turns] if has_system else turns
        for template, oracle in pairs:
            assert template.render(conversation(*turns)) == mistral_ids(oracle, turns)

    are_equal()


@pytest.mark.parametrize(
    "turns",
    [
        [("user", "a"), ("user", "b")],
        [("assistant", "a")],
        [("user", "a"), ("system", "b")],
        [("system", "a")],
    ],
    ids=lambda turns: " ".join(role for role, _ in turns),
)
def test_roles_out_of_order_are_refused(v1: Tokenizer, turns: list[tuple[str, str]]) -> None:
    with pytest.raises(ApiError) as caught:
        ChatTemplate(None, v1).render(conversation(*turns))
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_only_version_3_marks_turns_with_control_tokens(v1: Tokenizer, v3: Tokenizer) -> None:
    assert (has_control_tokens(v1), has_control_tokens(v3)) == (False, True)


@pytest.mark.parametrize(("version", "takes_tools"), [("v3", True), ("v7", True), ("v11", False), ("v13", False)])
def test_calls_that_are_no_list_are_not_asked_for(version: str, takes_tools: bool, tmp_path: Path) -> None:
    """From version 11 on a call is text between control tokens, which this server does not read."""
    template, _ = _of_tekken(tmp_path, version)
    assert template.takes_tools == takes_tools
    assert ("[SYSTEM_PROMPT]" in template.source) == (version != "v3")


def test_a_file_of_version_7_without_its_control_tokens_has_the_format_of_version_3(tmp_path: Path) -> None:
    file = cut_tekken(tmp_path, "v7")
    content = json.loads(file.read_text())
    content["special_tokens"] = content["special_tokens"][:17]  # up to [SUFFIX]
    file.write_text(json.dumps(content))
    assert "[SYSTEM_PROMPT]" not in ChatTemplate(None, load_tokenizer(tmp_path)).source
