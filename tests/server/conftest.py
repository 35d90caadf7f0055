"""Fixtures of all tests of the server."""

import os

import pytest

from server.tokenizer.tokenizer import Tokenizer
from tests.support.checkpoints.mistral_tokenizers import v1_tokenizer, v3_tokenizer


@pytest.fixture
def anyio_backend() -> str:
    """The event loop that async tests (marked anyio) run on."""
    return "asyncio"


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset the environment variables that define a setting or a directory."""
    for name in list(os.environ):
        if name.startswith(("SMOE_", "HF_", "XDG_CACHE")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def v1(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Mistral's tokenizer of version 1, where [INST] is plain text."""
    return v1_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def v3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Mistral's tokenizer of version 3, where [INST] is a control token."""
    return v3_tokenizer(tmp_path_factory.mktemp("tokenizer"))
