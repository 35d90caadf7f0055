"""server/chat/template.py: Mistral's formats to the id, and no way for a text to become a control token."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest as MistralRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from server.chat.template import ChatTemplate
from server.errors import ApiError
from server.schemas import ChatMessage
from server.tokenizer.tokenizer import Tokenizer, TokenizerError
from tests.support.mistral_tokenizers import v1_tokenizer, v3_tokenizer

# Words without spaces at their ends: mistral-common strips some of them, by version.
WORDS = st.text(
    alphabet=st.characters(codec="utf-8", exclude_characters="\u2581", exclude_categories=["C", "Z"]), min_size=1
)
TEXTS = st.lists(WORDS | st.sampled_from(["</s>", "<s>", "[INST]", "[/INST]"]), min_size=1, max_size=4).map(" ".join)
TURNS = {"user": UserMessage, "assistant": AssistantMessage, "system": SystemMessage}


@pytest.fixture(scope="module")
def v1(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return v1_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def v3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return v3_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")))


def conversation(*turns: tuple[str, str]) -> list[ChatMessage]:
    return [ChatMessage.model_validate({"role": role, "content": text}) for role, text in turns]


def mistral_ids(oracle: MistralTokenizer, turns: list[tuple[str, str]]) -> list[int]:
    messages = [TURNS[role](content=text) for role, text in turns]
    return list(oracle.encode_chat_completion(MistralRequest(messages=messages)).tokens)


def test_without_a_template_the_ids_are_mistral_commons(v1: Tokenizer, v3: Tokenizer, scale: int) -> None:
    @given(has_system=st.booleans(), texts=st.lists(TEXTS, min_size=6, max_size=6), num_answers=st.integers(0, 2))
    @settings(max_examples=60 * scale, deadline=None)
    def are_equal(has_system: bool, texts: list[str], num_answers: int) -> None:
        turns = [(role, texts[i]) for i, role in enumerate(["user", "assistant"] * num_answers + ["user"])]
        turns = [("system", texts[-1]), *turns] if has_system else turns
        for ours, oracle in ((v1, MistralTokenizer.v1()), (v3, MistralTokenizer.v3())):
            assert ChatTemplate(None, ours).render(conversation(*turns)) == mistral_ids(oracle, turns)

    are_equal()


@given(texts=st.lists(TEXTS, min_size=3, max_size=3))
@settings(max_examples=60, deadline=None)
def test_control_tokens_come_from_the_template_alone(v3: Tokenizer, texts: list[str]) -> None:
    turns = [("user", texts[0]), ("assistant", texts[1]), ("user", texts[2])]
    ids = ChatTemplate(None, v3).render(conversation(*turns))
    assert [i for i in ids if v3.is_special(i)] == [1, 3, 4, 2, 3, 4]


def test_a_text_and_what_the_template_puts_behind_it_make_no_control_token(v1: Tokenizer) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m['content'] }}/s>{% endfor %}", v1)
    ids = template.render(conversation(("user", "a<")))
    assert 2 not in ids
    assert v1.decode(ids) == "a</s>"


def test_a_template_trims_compares_and_splits_the_text_as_it_was(v1: Tokenizer) -> None:
    source = (
        "{% for m in messages %}{{ m.content|trim ~ '|' ~ m.content.split(' ')[0] }}"
        "{% if m.content == 'Hello' %}!{% endif %}{% endfor %}"
    )
    assert v1.decode(ChatTemplate(source, v1).render(conversation(("user", " a b ")))) == "a b|"
    assert v1.decode(ChatTemplate(source, v1).render(conversation(("user", "Hello")))) == "Hello|Hello!"


def test_the_templates_own_refusal_reaches_the_client(v1: Tokenizer) -> None:
    for turns in (
        [("user", "a"), ("user", "b")],
        [("assistant", "a")],
        [("user", "a"), ("system", "b")],
        [("system", "a")],
    ):
        with pytest.raises(ApiError) as caught:
            ChatTemplate(None, v1).render(conversation(*turns))
        assert (caught.value.status, caught.value.param) == (400, "messages")
    own = ChatTemplate("{{ raise_exception('only haiku, please') }}", v1)
    with pytest.raises(ApiError, match="only haiku, please"):
        own.render(conversation(("user", "a")))


def test_a_final_message_is_continued_where_it_ends(v1: Tokenizer) -> None:
    template = ChatTemplate(None, v1)
    turns = conversation(("user", "a"), ("assistant", "s"))
    ids = template.render(turns, add_generation_prompt=False, continue_final_message=True)
    assert ids == template.render(turns, add_generation_prompt=False)[:-1]
    silent = ChatTemplate("{{ messages | length }}", v1)
    with pytest.raises(ApiError) as caught:
        silent.render(turns, continue_final_message=True)
    assert caught.value.param == "continue_final_message"


@pytest.mark.parametrize(
    "source",
    [
        "{% for",
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(10 ** 9) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{{ 'x' * 10000000000 }}",
        "{{ 'x'.ljust(10000000000) }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10000000000) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
        "{{ (['x' * 1000000] * 1000000) | join }}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}"
        "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].nothing.more }}",
        "{{ 1 / 0 }}",
        "{% include 'file' %}",
        "x" * 2_000_000,
    ],
    ids=lambda source: source[:40],
)
def test_a_template_that_escapes_fails_or_never_ends_is_refused_at_the_start(v1: Tokenizer, source: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        ChatTemplate(source, v1)
    assert "\n" not in str(caught.value)


def test_loops_keep_their_loop_variable_break_and_recursion(v1: Tokenizer) -> None:
    source = (
        "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}"
        "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ loop.last }}{% break %}{% endfor %}"
        "{% for x in [1, [2, 3]] recursive %}"
        "{% if x is iterable %}{{ loop(x) }}{% else %}{{ x }}{% endif %}{% endfor %}"
        "{% for x in missing %}no{% else %}none{% endfor %}{{ {'\u00e4': '<'} | tojson }}"
    )
    assert (
        v1.decode(ChatTemplate(source, v1).render(conversation(("user", "Hello")))) == 'a11True123none{"\u00e4": "<"}'
    )
