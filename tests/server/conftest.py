"""Fixtures of all tests of the server."""

import os

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The event loop that async tests (marked anyio) run on."""
    return "asyncio"


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of this machine sets a setting or a directory."""
    for name in list(os.environ):
        if name.startswith(("SMOE_", "HF_", "XDG_CACHE")):
            monkeypatch.delenv(name)
