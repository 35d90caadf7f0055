"""Vocabulary of a GGUF file, with the engine's errors, for the tokenizer. No torch."""

from pathlib import Path

from engine.errors import EngineConfigError
from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf.vocabulary import GgufVocabulary
from model.checkpoint.gguf.vocabulary import read_gguf_vocabulary as read
from model.checkpoint.pack.side_files import VOCABULARY_NAME as PACKED_VOCABULARY

__all__ = ["PACKED_VOCABULARY", "GgufVocabulary", "read_gguf_vocabulary"]


def read_gguf_vocabulary(path: Path) -> GgufVocabulary | None:
    """Read the vocabulary of the model whose only or first file is `path`; None if it has none.

    Raises EngineConfigError.
    """
    try:
        return read(path)
    except CheckpointError as error:
        raise EngineConfigError(str(error)) from None
