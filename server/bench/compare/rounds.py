"""Rounds of a comparison: in each, one server after the other is started, measured under every load, and stopped.

Servers take turns (A B C, A B C, ...), so that a drift of the machine's speed meets all of them. The requests of a
round are the same for all servers, and differ from those of other rounds, so that no server answers from a cache.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from server.bench import serve
from server.bench.compare.peak_memory import peak_memory
from server.bench.compare.server_process import ServerCommand, ServerError, running
from server.bench.http_client import HttpError


@dataclass(frozen=True)
class Comparison:
    """Servers, the first of which is compared with the others, and their load."""

    servers: tuple[ServerCommand, ...]
    load: serve.Options  # endpoint and label are those of each server in turn
    num_rounds: int
    health_path: str
    start_timeout_s: float
    log_folder: Path


def parse_servers(texts: Sequence[str]) -> tuple[ServerCommand, ...]:
    """Parse the arguments of --server. Raises ServerError."""
    servers = tuple(map(ServerCommand.parse, texts))
    names = [server.name for server in servers]
    if len(servers) < 2:
        raise ServerError("--server: give it twice or more, the server to compare with the others first")
    if len(set(names)) < len(names):
        raise ServerError(f"--server: the names should differ: {', '.join(names)}")
    return servers


async def run(
    comparison: Comparison, progress: TextIO, on_result: Callable[[int, str, dict[str, Any]], None]
) -> dict[str, list[dict[str, Any]]]:
    """Run all rounds and return the figures of each by server. Raises ServerError.

    `on_result` gets the number of a round, a server's name and its figures. The bytes of memory are the peak of all
    loads.
    """
    figures: dict[str, list[dict[str, Any]]] = {server.name: [] for server in comparison.servers}
    for number in range(comparison.num_rounds):
        for server in comparison.servers:
            result = await _measure(comparison, server, number, progress)
            figures[server.name].append(result)
            on_result(number, server.name, result)
    return figures


async def _measure(comparison: Comparison, server: ServerCommand, number: int, progress: TextIO) -> dict[str, Any]:
    log = comparison.log_folder / f"{server.name}.log"
    async with running(server, log, comparison.health_path, comparison.start_timeout_s) as started:
        label = f"round {number + 1}, {server.name}"
        seed = comparison.load.seed + number
        options = replace(comparison.load, endpoint=started.endpoint, label=label, seed=seed)
        try:
            async with peak_memory(started.pid) as memory:
                measured = await serve.measure(options, progress)
        except HttpError as error:
            raise ServerError(f"{server.name}: {error}; its log is {log}") from None
        if measured["interrupted"]:  # it ended early instead of passing the cancellation on
            raise asyncio.CancelledError
    return {"ready_s": started.ready_s, "peak_bytes": memory.bytes, "runs": measured["runs"]}
