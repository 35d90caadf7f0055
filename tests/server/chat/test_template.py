"""server/chat/template.py: no text becomes a control token, and a template that fails is reported."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.chat.template import ChatTemplate
from server.errors import ApiError
from server.schemas import ChatMessage
from server.tokenizer.tokenizer import Tokenizer, TokenizerError

# Words without spaces at their ends: mistral-common strips some of them, by version.
WORDS = st.text(
    alphabet=st.characters(codec="utf-8", exclude_characters="\u2581", exclude_categories=["C", "Z"]), min_size=1
)
TEXTS = st.lists(WORDS | st.sampled_from(["</s>", "<s>", "[INST]", "[/INST]"]), min_size=1, max_size=4).map(" ".join)


def conversation(*turns: tuple[str, str]) -> list[ChatMessage]:
    return [ChatMessage.model_validate({"role": role, "content": text}) for role, text in turns]


@pytest.fixture(scope="module")
def default_template(v3: Tokenizer) -> ChatTemplate:
    return ChatTemplate(None, v3)


@given(texts=st.lists(TEXTS, min_size=3, max_size=3))
@settings(max_examples=60, deadline=None)
def test_control_tokens_come_from_the_template_alone(
    v3: Tokenizer, default_template: ChatTemplate, texts: list[str]
) -> None:
    turns = [("user", texts[0]), ("assistant", texts[1]), ("user", texts[2])]
    ids = default_template.render(conversation(*turns))
    assert [i for i in ids if v3.is_special(i)] == [1, 3, 4, 2, 3, 4]


def test_a_text_and_the_template_text_behind_it_make_no_control_token(v1: Tokenizer) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m['content'] }}/s>{% endfor %}", v1)
    ids = template.render(conversation(("user", "a<")))
    assert 2 not in ids
    assert v1.decode(ids) == "a</s>"


def test_a_template_trims_compares_and_splits_the_unguarded_text(v1: Tokenizer) -> None:
    source = (
        "{% for m in messages %}{{ m.content|trim ~ '|' ~ m.content.split(' ')[0] }}"
        "{% if m.content == 'Hello' %}!{% endif %}{% endfor %}"
    )
    assert v1.decode(ChatTemplate(source, v1).render(conversation(("user", " a b ")))) == "a b|"
    assert v1.decode(ChatTemplate(source, v1).render(conversation(("user", "Hello")))) == "Hello|Hello!"


def test_a_final_message_is_continued_where_it_ends(v1: Tokenizer) -> None:
    template = ChatTemplate(None, v1)
    turns = conversation(("user", "a"), ("assistant", "s"))
    ids = template.render(turns, add_generation_prompt=False, continue_final_message=True)
    assert ids == template.render(turns, add_generation_prompt=False)[:-1]
    silent = ChatTemplate("{{ messages | length }}", v1)
    with pytest.raises(ApiError) as caught:
        silent.render(turns, continue_final_message=True)
    assert caught.value.param == "continue_final_message"


def test_the_templates_own_refusal_reaches_the_client(v1: Tokenizer) -> None:
    template = ChatTemplate("{{ raise_exception('only haiku, please') }}", v1)
    with pytest.raises(ApiError, match="only haiku, please") as caught:
        template.render(conversation(("user", "a")))
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "messages", "invalid_value")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for", "not valid jinja"),
        ("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", "more than 2000000 steps"),
        ("{{ 'x' * 10000000000 }}", "more than 8388608 characters"),
        ("{{ ''.__class__.__mro__ }}", "fails on a simple conversation"),
        ("{{ 1 / 0 }}", "fails on a simple conversation"),
        ("x" * 2_000_000, "more than 1048576 characters"),
    ],
    ids=lambda value: value[:40],
)
def test_a_template_that_can_never_work_is_refused_at_the_start(v1: Tokenizer, source: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        ChatTemplate(source, v1)
    assert "\n" not in str(caught.value)


def test_a_template_that_needs_tools_is_accepted(v1: Tokenizer) -> None:
    template = ChatTemplate("{% for tool in tools %}{{ tool.function.name }}{% endfor %}{{ 1 / (tools | length) }}", v1)
    assert not template.takes_tools  # this tokenizer has no token for calls


def test_a_template_that_needs_tools_gets_an_empty_list_where_a_conversation_has_none(v1: Tokenizer) -> None:
    """As with --tool-emulation, where the server describes the tools in a message."""
    loop = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}"
    words = "{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}"
    rendered = ChatTemplate(loop + words, v1).render(conversation(("system", "Be brief."), ("user", "Hello")))
    assert v1.decode(rendered) == "system: Be brief. user: Hello "
    is_none = ChatTemplate("{% if tools is none %}none{% else %}{{ tools | length }}{% endif %}", v1)
    assert v1.decode(is_none.render(conversation(("user", "Hello")))) == "none"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if messages[0].content == 'a' %}{{ 'x' * 10 ** 10 }}{% endif %}", "too large to render"),
        ("{% if messages[0].content == 'a' %}{{ 'x' * 10000000000 }}{% endif %}", "too large to render"),
        ("{% if messages[0].content == 'a' %}{{ 1 / 0 }}{% endif %}", "template failed on this conversation"),
    ],
)
def test_a_template_that_fails_on_one_conversation_is_a_400(v1: Tokenizer, source: str, message: str) -> None:
    template = ChatTemplate(source, v1)
    with pytest.raises(ApiError, match=message) as caught:
        template.render(conversation(("user", "a")))
    assert (caught.value.status, caught.value.param) == (400, "messages")
