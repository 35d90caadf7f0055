"""Durations and deadlines use the monotonic clock: a jump of the wall clock changes only dates and a batch's expiry."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.test_layering import module_name, product_files

DATES_FOR_PEOPLE = {
    "server.lifecycle.server",  # `created` of the models
    "server.api.routes.adapters",  # `created` of an adapter that was loaded while the server runs
    "server.api.formats.embeddings",
    "server.api.formats.ollama",  # `created_at` of a reply
    "server.api.formats.reply",  # `created` of a reply
    "engine.execution.experts.stats",  # `since` of a report
    "server.batch.store",  # `created_at` and others of files and batches; a batch expires by them, also across restarts
    "server.http.certificate",  # whether a certificate has expired
    "server.observability.tracing",  # spans have Unix times
    "server.chat.jinja_sandbox",  # the date that a chat template writes into a prompt
}
WALL_CLOCKS = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "datetime.now", "datetime.utcnow"}


def wall_clock_reads(source: str) -> Iterator[str]:
    """Yield the wall clocks that a file reads, imported by name or not."""
    if not re.search(r"\b(time|datetime)\b", source):
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in WALL_CLOCKS:
                yield name
        if isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
            yield from {f"{node.module}.{alias.name}" for alias in node.names} & WALL_CLOCKS


def test_only_dates_for_people_read_the_wall_clock() -> None:
    readers = {module_name(path) for path in product_files() if list(wall_clock_reads(path.read_text()))}
    assert readers == DATES_FOR_PEOPLE


@pytest.mark.parametrize("source", ["import time\nx = time.time()", "from time import time", "datetime.now()"])
def test_the_rule_sees_what_it_forbids(source: str) -> None:
    assert list(wall_clock_reads(source))
