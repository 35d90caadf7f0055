"""Load and render a checkpoint's chat template, which is untrusted: in the sandbox, or here as far as that is cheap."""

import asyncio

from server.chat.render_budget import INLINE_STEPS
from server.chat.template import ChatTemplate, PreparedConversation, spellings_of_ends, text_of
from server.chat.template_jobs import Rendered, TemplateProbe, compile_template, probe_template, render_text
from server.errors import check_not_possible, queue_full
from server.fairness.event_loop import off_loop
from server.sandbox.errors import SandboxError, SandboxFull, is_jobs_fault
from server.sandbox.job import Job
from server.sandbox.pool import Sandbox
from server.tokenizer.tokenizer import Tokenizer, TokenizerError

TEMPLATE = "chat template"  # name of the prepared object in the sandbox
FULL_RETRY_S = 2.0


async def load_template(source: str | None, tokenizer: Tokenizer, sandbox: Sandbox) -> ChatTemplate:
    """Load a template after it has been tried out in the sandbox; None for Mistral's own format.

    Raises TokenizerError with one line if it is unusable.
    """
    if source is None:
        return ChatTemplate(None, tokenizer)
    try:
        source.encode()
    except UnicodeEncodeError:
        raise TokenizerError("the chat template has a lone surrogate, which is not a character") from None
    try:
        probe = await sandbox.run(Job(probe_template, (source, *spellings_of_ends(tokenizer)), TemplateProbe))
        template = await asyncio.to_thread(ChatTemplate, source, tokenizer, probe)
        await sandbox.prepare(TEMPLATE, compile_template, source)
    except SandboxError as end:
        raise TokenizerError(f"the chat template cannot be tried out: {end}") from None
    return template


async def render_text_of(
    template: ChatTemplate, conversation: PreparedConversation, sandbox: Sandbox, *, heavy: bool, tenant: int
) -> str:
    """Return the text that the template makes of a conversation. Raises ApiError.

    A short conversation is rendered here if that takes few steps, counted while they are done. `heavy`: it is long.
    """
    if template.is_trusted:
        rendered = await off_loop(lambda: template.render_here(conversation, 1 << 62), heavy=heavy)
    else:
        rendered = None if heavy else template.render_here(conversation, INLINE_STEPS)
    if rendered is None:
        rendered = await _render_in_sandbox(conversation, sandbox, tenant)
    return text_of(rendered)


async def _render_in_sandbox(conversation: PreparedConversation, sandbox: Sandbox, tenant: int) -> Rendered:
    try:
        return await sandbox.run(Job(render_text, (conversation.as_json(),), Rendered, TEMPLATE), tenant=tenant)
    except SandboxFull:
        raise queue_full(FULL_RETRY_S) from None
    except SandboxError as end:
        if is_jobs_fault(end):
            return Rendered(is_too_large=True)
        raise check_not_possible("messages") from None
