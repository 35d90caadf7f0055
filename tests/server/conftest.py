"""What the server's tests share."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The event loop that async tests (marked anyio) run on."""
    return "asyncio"
