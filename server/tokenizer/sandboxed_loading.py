"""Load a checkpoint's tokenizer after a sandbox process has done it: its files are untrusted."""

import asyncio
from pathlib import Path

import msgspec

from server.sandbox.errors import SandboxError
from server.sandbox.job import Job, Limits
from server.sandbox.pool import Sandbox
from server.tokenizer.tokenizer import Tokenizer, TokenizerError, load_tokenizer

LIMITS = Limits(cpu_s=30.0, memory_bytes=1 << 30)  # a tokenizer.json of Mixtral takes 1 s and 100 MiB
DEADLINE_S = 300.0


class Trial(msgspec.Struct, frozen=True):
    """Result of loading a tokenizer: the error's line, or None."""

    fault: str | None


def try_to_load(path: str) -> Trial:
    """Load the tokenizer and drop it."""
    try:
        load_tokenizer(Path(path))
    except TokenizerError as error:
        return Trial(str(error))
    return Trial(None)


async def load_proven_tokenizer(path: Path, sandbox: Sandbox) -> Tokenizer:
    """Load the tokenizer here if a sandbox process could. Raises TokenizerError: one line with file and fault."""
    try:
        trial = await sandbox.run(Job(try_to_load, (str(path),), Trial, limits=LIMITS), deadline_s=DEADLINE_S)
    except SandboxError as end:
        raise TokenizerError(f"{path}: the tokenizer cannot be loaded: {end}") from None
    if trial.fault is not None:
        raise TokenizerError(trial.fault)
    return await asyncio.to_thread(load_tokenizer, path)
