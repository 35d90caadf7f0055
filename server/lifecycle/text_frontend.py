"""Load what turns text into tokens and back: the tokenizer, the chat template and the generation defaults."""

from pathlib import Path

from server.chat.rendering import load_template
from server.chat.template import ChatTemplate
from server.generation.generation_defaults import GenerationDefaults, load_generation_defaults
from server.generation.state import TextFrontend
from server.lifecycle.errors import StartError
from server.sandbox.pool import Sandbox
from server.settings.settings import Settings
from server.tokenizer.sandboxed_loading import load_proven_tokenizer
from server.tokenizer.tokenizer import Tokenizer


async def load_texts(settings: Settings, model_dir: Path, sandbox: Sandbox) -> TextFrontend:
    """Load the text frontend of a checkpoint. Raises TokenizerError or StartError."""
    tokenizer = await load_proven_tokenizer(model_dir, sandbox)
    defaults = load_defaults(settings, model_dir)
    template = await load_chat_template(settings, tokenizer, sandbox)
    return TextFrontend(tokenizer, template, defaults, sandbox)


def load_defaults(settings: Settings, model_dir: Path) -> GenerationDefaults:
    """Load the checkpoint's sampling defaults, with what the settings say instead. Raises TokenizerError."""
    own = load_generation_defaults(model_dir) if settings.generation_config == "auto" else GenerationDefaults()
    return own.overridden(settings.override_generation_config)


async def load_chat_template(settings: Settings, tokenizer: Tokenizer, sandbox: Sandbox) -> ChatTemplate:
    """Load the template of --chat-template, or else the checkpoint's. Raises TokenizerError or StartError."""
    source = tokenizer.chat_template if settings.chat_template is None else _read_template(settings.chat_template)
    return await load_template(source, tokenizer, sandbox)


def _read_template(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        raise StartError(f"--chat-template {path}: cannot be read as text") from None
