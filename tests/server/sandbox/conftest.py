"""A started pool for the tests of this folder."""

from collections.abc import AsyncIterator

import pytest

from server.sandbox.pool import SandboxPool


@pytest.fixture
async def pool(anyio_backend: str) -> AsyncIterator[SandboxPool]:
    pool = SandboxPool(num_workers=2)
    await pool.start()
    yield pool
    pool.close()
