"""Load what turns text into tokens and back: the tokenizer, the chat template and the generation defaults."""

from pathlib import Path

from server.chat.rendering import load_template
from server.generation.sampling_params import GenerationDefaults, load_generation_defaults
from server.generation.state import TextFrontend
from server.lifecycle.errors import StartError
from server.sandbox.pool import Sandbox
from server.settings.settings import Settings
from server.tokenizer.sandboxed_loading import load_proven_tokenizer


async def load_texts(settings: Settings, model_dir: Path, sandbox: Sandbox) -> TextFrontend:
    """Load the text frontend of a checkpoint. Raises TokenizerError or StartError."""
    tokenizer = await load_proven_tokenizer(model_dir, sandbox)
    source = tokenizer.chat_template if settings.chat_template is None else _read_template(settings.chat_template)
    use_defaults = settings.generation_config == "auto"
    defaults = load_generation_defaults(model_dir) if use_defaults else GenerationDefaults()
    template = await load_template(source, tokenizer, sandbox)
    return TextFrontend(tokenizer, template, defaults, sandbox)


def _read_template(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        raise StartError(f"--chat-template {path}: cannot be read as text") from None
