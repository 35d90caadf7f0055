"""server/chat/rendering.py: cheap conversations are rendered here, others in the sandbox; its ends become answers."""

import pytest

from server.chat.render_budget import INLINE_STEPS
from server.chat.rendering import load_template, render_text_of
from server.chat.template import ChatTemplate, PreparedConversation
from server.chat.turns import Turn
from server.errors import ApiError
from server.sandbox.errors import Crashed, Killed, RanOutOfMemory, SandboxError, SandboxFull, TookTooLong
from server.tokenizer.tokenizer import TokenizerError
from tests.support.servers.inline_sandbox import InlineSandbox
from tests.support.servers.serving import tokenizer

pytestmark = pytest.mark.anyio

OWN = (
    "{{ bos_token }}{% for m in messages %}{% for i in range(turns | default(1) | int) %}{% endfor %}{{ m.content }}"
    "{% endfor %}"
)


async def loaded(sandbox: InlineSandbox, source: str | None = OWN) -> ChatTemplate:
    return await load_template(source, tokenizer(), sandbox)


def saying(template: ChatTemplate, text: str, turns: int = 1) -> PreparedConversation:
    return template.prepare([Turn("user", text)], kwargs={"turns": str(turns)})


async def render(template: ChatTemplate, sandbox: InlineSandbox, turns: int = 1, *, heavy: bool = False) -> str:
    conversation = saying(template, "Hello", turns)
    return await render_text_of(template, conversation, sandbox, heavy=heavy, tenant=7)


async def test_a_cheap_conversation_is_rendered_here_and_another_in_the_sandbox_with_the_same_text() -> None:
    sandbox = InlineSandbox()
    template = await loaded(sandbox)
    sandbox.tenants.clear()
    assert await render(template, sandbox) == "<s>Hello" and sandbox.tenants == []
    assert await render(template, sandbox, turns=INLINE_STEPS) == "<s>Hello" and sandbox.tenants == [7]
    assert await render(template, sandbox, heavy=True) == "<s>Hello" and sandbox.tenants == [7, 7]


async def test_this_servers_own_format_is_never_rendered_in_the_sandbox() -> None:
    sandbox = InlineSandbox()
    template = await loaded(sandbox, None)
    assert "Hello" in await render(template, sandbox, heavy=True)
    assert sandbox.tenants == []


@pytest.mark.parametrize(
    ("end", "status", "words"),
    [
        (TookTooLong("x", is_proven=True), 400, "too large"),
        (RanOutOfMemory("x"), 400, "too large"),
        (Crashed("x"), 400, "too large"),
        (TookTooLong("x", is_proven=False), 503, "could not be checked now"),
        (Killed("x"), 503, "could not be checked now"),
        (SandboxFull("x"), 429, "busy"),
    ],
    ids=lambda value: str(value),
)
async def test_each_end_of_the_sandbox_has_its_answer(end: SandboxError, status: int, words: str) -> None:
    sandbox = InlineSandbox()
    template = await loaded(sandbox)
    sandbox.failures = [end]
    with pytest.raises(ApiError, match=words) as refused:
        await render(template, sandbox, heavy=True)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('only haiku') }}", "only haiku"),
        ("{% if turns is defined %}{{ 1 / 0 }}{% endif %}", "failed on this conversation"),
        ("{% if turns is defined %}{{ range(99999) | sort | sort }}{% endif %}", "too large to render"),
    ],
)
@pytest.mark.parametrize("heavy", [True, False])
async def test_a_templates_refusals_and_faults_are_the_same_in_the_sandbox(
    source: str, words: str, heavy: bool
) -> None:
    sandbox = InlineSandbox()
    template = await loaded(sandbox, source)
    with pytest.raises(ApiError, match=words) as refused:
        await render(template, sandbox, heavy=heavy)
    assert (refused.value.status, refused.value.param) == (400, "messages")


async def test_a_template_that_is_no_unicode_text_is_refused() -> None:
    with pytest.raises(TokenizerError, match="lone surrogate"):
        await loaded(InlineSandbox(), "\ud800")


@pytest.mark.parametrize("end", [TookTooLong("it used up its CPU time", is_proven=True), RanOutOfMemory("memory")])
async def test_a_template_that_ends_its_process_ends_the_start_with_one_line(end: SandboxError) -> None:
    sandbox = InlineSandbox()
    sandbox.failures = [end]
    with pytest.raises(TokenizerError, match=r"^the chat template cannot be tried out: .+$") as failed:
        await loaded(sandbox)
    assert "\n" not in str(failed.value)
