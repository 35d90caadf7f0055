"""server/tokenizer/sandboxed_loading.py: a tokenizer is loaded here only after a sandbox process could load it."""

from pathlib import Path

import pytest

from server.sandbox.errors import Crashed, RanOutOfMemory, SandboxError, TookTooLong
from server.tokenizer import sandboxed_loading
from server.tokenizer.sandboxed_loading import load_proven_tokenizer
from server.tokenizer.tokenizer import TokenizerError
from tests.support.paths import DEMO
from tests.support.servers.inline_sandbox import InlineSandbox

pytestmark = pytest.mark.anyio


async def test_a_sound_tokenizer_is_loaded() -> None:
    sandbox = InlineSandbox()
    assert (await load_proven_tokenizer(DEMO, sandbox)).vocab_size > 0
    assert len(sandbox.tenants) == 1


async def test_a_damaged_file_keeps_its_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"damaged")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: not a SentencePiece model, or a damaged one$"):
        await load_proven_tokenizer(tmp_path, InlineSandbox())


@pytest.mark.parametrize(
    "end", [RanOutOfMemory("it needed more memory than its limit"), Crashed("x"), TookTooLong("x", is_proven=True)]
)
async def test_a_file_that_ends_its_process_is_never_loaded_here(
    end: SandboxError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandboxed_loading, "load_tokenizer", lambda path: pytest.fail("loaded here"))
    sandbox = InlineSandbox()
    sandbox.failures = [end]
    with pytest.raises(TokenizerError, match="the tokenizer cannot be loaded: ") as failed:
        await load_proven_tokenizer(DEMO, sandbox)
    assert str(DEMO) in str(failed.value) and "\n" not in str(failed.value)
