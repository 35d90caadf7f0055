"""Shared by the tests that start server processes."""

from pathlib import Path

import pytest

from tests.support import ports
from tests.support.checkpoints.tokenizer_only import write_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer and an empty config: the fake engine reads no weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_tokenizer(folder)
    return folder


@pytest.fixture
def free_port() -> int:
    return ports.free_port()
