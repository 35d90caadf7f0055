"""Compiled kernels are kept until their sources change: test files compile those of the same steps, and so do runs."""

import hashlib
import shutil
from collections.abc import Iterator

import pytest
import triton

from tests.support.paths import ROOT

SOURCES = ROOT / "model" / "ops" / "triton"


@pytest.fixture(scope="module")
def kept_kernels(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let Triton keep compiled kernels in a folder of pytest's cache, which is for the sources of today."""
    has_cache = hasattr(pytestconfig, "cache")  # unless its plugin is switched off
    parent = pytestconfig.cache.mkdir("kernels") if has_cache else tmp_path_factory.mktemp("kernels")
    folder = parent / state_of_sources()
    for other in parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)  # another process may do so too
    with triton.knobs.cache.scope(), triton.knobs.compilation.scope():
        triton.knobs.cache.dir = str(folder)
        triton.knobs.compilation.store_binary_only = True
        yield


def state_of_sources() -> str:
    """Return a digest of all kernels' sources.

    Triton's own key has a kernel's source, the compiler and its options, but not what functions return that the kernel
    calls while it compiles.
    """
    digest = hashlib.sha256(triton.__version__.encode())
    for file in sorted(SOURCES.rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(SOURCES)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]
