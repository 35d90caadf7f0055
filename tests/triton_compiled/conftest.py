"""One cache of compiled kernels for a run of pytest: its files compile kernels of the same steps."""

import os

import pytest
import triton


@pytest.fixture(scope="module")
def cache_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let Triton keep compiled kernels in a folder that all processes of this run share, and no other run."""
    own = tmp_path_factory.getbasetemp()
    folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    triton.knobs.cache.dir = str(folder / "triton")
