"""What a GGUF file has beside its network, with the engine's errors: vocabulary and sampling fields. No torch."""

from pathlib import Path

from engine.errors import EngineConfigError
from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf.sampling import read_gguf_sampling as read_sampling
from model.checkpoint.gguf.vocabulary import GgufVocabulary
from model.checkpoint.gguf.vocabulary import read_gguf_vocabulary as read
from model.checkpoint.pack.side_files import VOCABULARY_NAME as PACKED_VOCABULARY

__all__ = ["PACKED_VOCABULARY", "GgufVocabulary", "read_gguf_sampling", "read_gguf_vocabulary"]


def read_gguf_vocabulary(path: Path) -> GgufVocabulary | None:
    """Read the vocabulary of the model whose only or first file is `path`; None if it has none.

    Raises EngineConfigError.
    """
    try:
        return read(path)
    except CheckpointError as error:
        raise EngineConfigError(str(error)) from None


def read_gguf_sampling(path: Path) -> dict[str, object]:
    """Read the sampling fields that the file recommends, unchecked, under the names of generation_config.json.

    Raises EngineConfigError.
    """
    try:
        return read_sampling(path)
    except CheckpointError as error:
        raise EngineConfigError(str(error)) from None
