"""Shared by the tests that start server processes."""

from pathlib import Path

import pytest
import sentencepiece

from tests.support import ports


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer and an empty config: the fake engine reads no weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["it was a truth universally acknowledged"] * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=290,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def free_port() -> int:
    return ports.free_port()
