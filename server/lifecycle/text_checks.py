"""Load the text frontend of a checkpoint part by part, as a server does, and say which parts would end its start."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from engine.capacity.machine.host_resources import memory_limit_bytes
from server.lifecycle.errors import StartError, process_error
from server.lifecycle.text_frontend import load_chat_template, load_defaults
from server.sandbox.job import limits_within
from server.sandbox.pool import Sandbox, SandboxPool
from server.settings.settings import Settings
from server.tokenizer.sandboxed_loading import load_proven_tokenizer
from server.tokenizer.tokenizer import Tokenizer, TokenizerError


@dataclass(frozen=True)
class TextCheck:
    """One part of the text frontend."""

    name: str
    detail: str  # what was found, or the line with which a start would end
    is_ok: bool


def check_texts(settings: Settings, model_dir: Path, vocab_size: int) -> list[TextCheck]:
    """Check tokenizer, chat template and sampling defaults in sandbox processes of their own.

    `vocab_size`: of the model. Without a tokenizer the template is not tried out.
    """
    return asyncio.run(_check(settings, model_dir, vocab_size))


async def _check(settings: Settings, model_dir: Path, vocab_size: int) -> list[TextCheck]:
    sandbox = SandboxPool(1, limits=limits_within(memory_limit_bytes()))
    try:
        await sandbox.start()
        return [part async for part in _parts(settings, model_dir, vocab_size, sandbox)]
    except OSError as error:
        return [TextCheck("sandbox", process_error(error), is_ok=False)]
    finally:
        sandbox.close()


async def _parts(settings: Settings, model_dir: Path, vocab_size: int, sandbox: Sandbox) -> AsyncIterator[TextCheck]:
    try:
        tokenizer = await load_proven_tokenizer(model_dir, sandbox)
    except TokenizerError as error:
        yield TextCheck("tokenizer", str(error), is_ok=False)
    else:
        yield _vocabulary(tokenizer, model_dir, vocab_size)
        yield await _template(settings, tokenizer, sandbox)
    yield _defaults(settings, model_dir)


def _vocabulary(tokenizer: Tokenizer, model_dir: Path, vocab_size: int) -> TextCheck:
    try:
        tokenizer.check_fits(vocab_size)
    except TokenizerError as error:
        return TextCheck("tokenizer", f"{model_dir}: {error}", is_ok=False)
    return TextCheck("tokenizer", f"{tokenizer.vocab_size:,} tokens", is_ok=True)


async def _template(settings: Settings, tokenizer: Tokenizer, sandbox: Sandbox) -> TextCheck:
    try:
        template = await load_chat_template(settings, tokenizer, sandbox)
    except (TokenizerError, StartError) as error:
        return TextCheck("template", str(error), is_ok=False)
    own = "a built-in chat format, by its tokenizer" if template.is_trusted else "its own chat template"
    used = own if settings.chat_template is None else f"--chat-template {settings.chat_template}"
    has_tools = template.takes_tools or settings.tool_emulation
    tools = "" if has_tools else "; it has no tools: clients that send some (coding agents) need --tool-emulation"
    return TextCheck("template", used + tools, is_ok=True)


def _defaults(settings: Settings, model_dir: Path) -> TextCheck:
    try:
        defaults = load_defaults(settings, model_dir)
    except TokenizerError as error:
        return TextCheck("defaults", str(error), is_ok=False)
    return TextCheck("defaults", f"temperature {defaults.temperature:g}, top_p {defaults.top_p:g}", is_ok=True)
