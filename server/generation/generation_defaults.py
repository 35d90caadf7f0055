"""Values of sampling fields that a request omits: the checkpoint's, and those that the operator sets."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.capacity.gguf_vocabulary import PACKED_VOCABULARY, read_gguf_sampling
from engine.errors import EngineConfigError
from server.settings.sampling_defaults import INTEGERS, RANGES, check_default
from server.tokenizer.config_files import TokenizerError, read_json


@dataclass(frozen=True)
class GenerationDefaults:
    """Values of sampling fields that a request omits. The defaults here leave the model's distribution unchanged."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def overridden(self, values: Mapping[str, float]) -> "GenerationDefaults":
        """Return these values with others for some fields."""
        typed: dict[str, Any] = {
            name: int(value) if name in INTEGERS else float(value) for name, value in values.items()
        }
        return replace(self, **typed)


def load_generation_defaults(path: Path) -> GenerationDefaults:
    """Read the defaults of the checkpoint `path`: generation_config.json in a directory, or a GGUF file's fields.

    Raises TokenizerError (one line, with the file) for a value that a request could not have either.
    """
    gguf = path if path.is_file() else path / PACKED_VOCABULARY
    file = gguf if gguf.is_file() else path / "generation_config.json"
    values = _of_gguf(gguf) if gguf.is_file() else read_json(file) or {}
    try:
        given = {name: check_default(name, values[name]) for name in RANGES if values.get(name) is not None}
    except ValueError as error:
        raise TokenizerError(f"{file}: {error}") from None
    return GenerationDefaults().overridden(given)


def _of_gguf(file: Path) -> Mapping[str, object]:
    try:
        return read_gguf_sampling(file)
    except EngineConfigError as error:
        raise TokenizerError(str(error)) from None
