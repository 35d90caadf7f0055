"""Which clock is read where: what times anything reads the monotonic one, so that a wall clock that jumps moves nothing
but the times that people read."""

import ast
from collections.abc import Iterator

import pytest

from tests.test_layering import module_name, product_files

TELL_PEOPLE_THE_TIME = {
    "server.lifecycle.serve",  # `created` of the models
    "server.api.formats.reply",  # `created` of a reply
    "engine.execution.expert_stats",  # `since` of a report
}
WALL_CLOCKS = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "datetime.now", "datetime.utcnow"}


def reads(tree: ast.AST) -> Iterator[str]:
    """The wall clocks that are read, under whatever module they are called by."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in WALL_CLOCKS:
                yield name
        if isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
            yield from {f"{node.module}.{alias.name}" for alias in node.names} & WALL_CLOCKS


def test_only_what_tells_people_the_time_reads_the_wall_clock() -> None:
    readers = {module_name(path) for path in product_files() if list(reads(ast.parse(path.read_text())))}
    assert readers == TELL_PEOPLE_THE_TIME


@pytest.mark.parametrize("source", ["import time\nx = time.time()", "from time import time", "datetime.now()"])
def test_the_rule_sees_what_it_forbids(source: str) -> None:
    assert list(reads(ast.parse(source)))
