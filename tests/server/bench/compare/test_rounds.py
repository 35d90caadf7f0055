"""server/bench/compare/rounds.py: a comparison that is stopped has no figures of the server that it measured then."""

import asyncio
import io
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from server.bench import serve
from server.bench.compare.rounds import Comparison, parse_servers, run
from tests.server.bench.test_serve import DEFAULTS

SERVER = shlex.join([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory"])


def test_a_cancelled_comparison_ends_without_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement itself ends with what it has when it is cancelled."""
    results: list[tuple[int, str, dict[str, Any]]] = []
    options = serve.parse_options(DEFAULTS | {"model": "m", "warmup": 0})
    servers = parse_servers([f"{name}={SERVER} {shlex.quote(str(tmp_path))} {{port}}" for name in ("a", "b")])
    comparison = Comparison(servers, options, 2, "/", 60.0, tmp_path)

    async def scenario() -> None:
        is_sending = asyncio.Event()

        async def send_until_cancelled(*_: object) -> None:
            if not is_sending.is_set():
                is_sending.set()
                await asyncio.Event().wait()

        monkeypatch.setattr(serve, "_send", send_until_cancelled)
        running = asyncio.create_task(run(comparison, io.StringIO(), lambda *result: results.append(result)))
        await is_sending.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(scenario())
    assert results == []
