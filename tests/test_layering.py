"""Import rules: server -> engine -> model, no loops, torch only where tensors are, one reader of the environment.

Imports are read from the source, those inside functions too, so a lazy import does not get around a rule. All rules
name folders, not files: a new file is checked from its first line.
"""

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

LAYERS = ("server", "engine", "model")
MAY_IMPORT = {
    "server": {"server", "engine"},
    "engine": {"engine", "model"},
    "model": {"model"},
    "smoe": {"server", "engine"},  # the Python interface: text and engine in one process
}
PACKAGE_PATH_ONLY = {("server.model_files.location", "model")}  # the folder of the bundled checkpoint

ANY_IO = {"torch", "numpy", "socket", "asyncio", "time", "random"}
# Folder or top-level file -> packages that it must not reach, through however many of our modules.
NEVER_REACHES = {
    "server": {"torch"},
    "server.sandbox": {"torch", "starlette", "fastapi", "uvicorn", "jinja2"},  # each of its processes would pay
    "engine.scheduling": ANY_IO,
    "engine.types": ANY_IO,
    "engine.messages": ANY_IO,
    "engine.config": ANY_IO,
    "engine.capacity": {"torch"},
    "engine.planning": {"torch", "socket", "asyncio", "random"},
    "engine.grammars": {"torch"},
    "model.checkpoint": {"torch"},
    "model.config": {"torch"},
    "model.cut": {"torch"},
    "model.kv_format": {"torch"},
}
ENGINE_FOLDERS_WITH_TORCH = ("engine.distributed", "engine.execution", "engine.startup")
CAPACITY_TAKES_FROM_MODEL = ("model.config", "model.cut", "model.kv_format", "model.checkpoint")
SERVER_TAKES_FROM_ENGINE = (
    "engine.capacity",
    "engine.grammars",
    "engine.planning",
    "engine.bench.task",
)  # and data files, see below
NO_DATA_FILES = (
    "engine.engine",
    "engine.process",
    "engine.rank",
    "engine.host_rank",
)  # top-level files that run the engine

IMPORT = re.compile(r"^\s*((?:from|import) (?:tests|server|engine|model)\b[^(\n]*(?:\([^)]*\))?)", re.MULTILINE)
NATIVE = ROOT / "model" / "native"


def product_files() -> list[Path]:
    files = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]
    return [path for path in files if path.parent != ROOT / "model" / "demo" / "training"] + [ROOT / "smoe.py"]


def module_name(path: Path) -> str:
    """server/api/routes/chat.py is server.api.routes.chat, server/__init__.py is server."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that an import statement mentions: `from a.b import c` gives a.b and a.b.c."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def import_graph() -> dict[str, set[str]]:
    """Product module -> the names it imports."""
    return {module_name(path): set(imported_names(ast.parse(path.read_text()))) for path in product_files()}


def module_imports() -> Iterator[tuple[str, str]]:
    """Pairs of product modules, the importing one first. `from a import b` means a.b where that is a module."""
    graph = import_graph()
    for module, names in graph.items():
        found = {name for name in names if name in graph}
        yield from ((module, name) for name in found if not any(other.startswith(f"{name}.") for other in found))


def is_in(module: str, folder: str) -> bool:
    return module == folder or module.startswith(f"{folder}.")


def top_level(name: str) -> str:
    return name.partition(".")[0]


def reachable(module: str) -> set[str]:
    """The top-level packages that importing `module` can bring in, through product modules."""
    graph = import_graph()
    seen: set[str] = set()
    outside: set[str] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in graph:
            queue += [*graph[name], name.rpartition(".")[0]]
        elif name:
            outside.add(top_level(name))
    return outside


def quick_imports(path: Path) -> Iterator[str]:
    """Yield imported_names of a file without parsing the rest of it."""
    for statement in IMPORT.findall(path.read_text()):
        with suppress(SyntaxError):  # a sentence of a docstring
            yield from imported_names(ast.parse(statement))


@cache
def is_missing(name: str) -> bool:
    """True for a name below our packages that is no module, and nothing that a module of ours may define."""
    path = ROOT.joinpath(*name.split("."))
    if top_level(name) not in {*LAYERS, "tests"} or path.with_suffix(".py").exists() or any(path.glob("**/*.py")):
        return False
    package = path.parent / "__init__.py"
    return not path.parent.with_suffix(".py").exists() and not (
        package.exists() and re.search(rf"\b{path.name}\b", package.read_text())
    )


def reads_environment(source: str) -> bool:
    names = {"environ", "environb", "getenv"}
    if not any(name in source for name in names):
        return False
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and any(alias.name in names for alias in node.names)
        )
        for node in ast.walk(ast.parse(source))
    )


def loop_in(edges: Iterable[tuple[str, str]]) -> list[str]:
    """The nodes of one loop in a directed graph, in order; empty where there is none."""
    followers: Mapping[str, set[str]] = defaultdict(set)
    for start, end in edges:
        if start != end:
            followers[start].add(end)
    try:
        TopologicalSorter(followers).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def entries_of(folder: str, edges: Iterable[tuple[str, str]], separator: str) -> set[tuple[str, str]]:
    """The edges between a folder's direct entries, which are files and subfolders.

    Example: in folder `a` the edge a.b.c -> a.d becomes b -> d.
    """
    prefix = folder + separator if folder else ""
    inside = [
        (start.removeprefix(prefix), end.removeprefix(prefix))
        for start, end in edges
        if start.startswith(prefix) and end.startswith(prefix)
    ]
    return {(start.partition(separator)[0], end.partition(separator)[0]) for start, end in inside}


@pytest.mark.parametrize("layer", sorted(MAY_IMPORT))
def test_imports_go_from_server_to_engine_to_model_and_never_back(layer: str) -> None:
    ours = {*LAYERS, "smoe"}
    wrong = [
        f"{module} imports {name}"
        for module, names in import_graph().items()
        for name in names
        if top_level(module) == layer and top_level(name) in ours - MAY_IMPORT[layer]
        if (module, name) not in PACKAGE_PATH_ONLY
    ]
    assert not wrong


def test_no_two_entries_of_a_folder_import_each_other_in_a_loop() -> None:
    """Each folder's entries (files and subfolders) can be put on floors such that every import goes down."""
    edges = list(module_imports())
    folders = {module.rpartition(".")[0] for module in import_graph()} - {""}
    loops = {folder: loop_in(entries_of(folder, edges, ".")) for folder in sorted(folders)}
    assert not {folder: loop for folder, loop in loops.items() if loop}


def test_no_two_files_import_each_other_in_a_loop() -> None:
    assert not loop_in(module_imports())


def test_no_two_folders_of_the_native_library_include_each_other_in_a_loop() -> None:
    edges = list(native_includes())
    folders = {"", *(path.rpartition("/")[0] for path, _ in edges)}
    loops = {folder: loop_in(entries_of(folder, edges, "/")) for folder in sorted(folders)}
    assert not {folder: loop for folder, loop in loops.items() if loop}
    assert not loop_in(edges)


def native_includes() -> Iterator[tuple[str, str]]:
    """Pairs of C++ files below model/native, the including one first."""
    for path in sorted(NATIVE.rglob("*")):
        if path.suffix in (".cpp", ".h") and "CMakeFiles" not in path.parts:
            name = path.relative_to(NATIVE).as_posix()
            yield from ((name, found) for found in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("folder", sorted(NEVER_REACHES))
def test_a_folder_reaches_no_package_that_is_forbidden_to_it(folder: str) -> None:
    modules = [module for module in import_graph() if is_in(module, folder)]
    assert modules
    wrong = {module: found for module in modules if (found := reachable(module) & NEVER_REACHES[folder])}
    assert not wrong


def test_in_the_engine_only_the_folders_with_tensors_import_torch() -> None:
    importing = [
        module
        for module, names in import_graph().items()
        if is_in(module, "engine") and "torch" in map(top_level, names)
    ]
    assert [m for m in importing if not any(is_in(m, folder) for folder in ENGINE_FOLDERS_WITH_TORCH)] == []


def test_capacity_takes_from_the_model_only_what_describes_a_checkpoint() -> None:
    taken = {name for module, name in module_imports() if is_in(module, "engine.capacity") and is_in(name, "model")}
    assert [name for name in taken if not any(is_in(name, allowed) for allowed in CAPACITY_TAKES_FROM_MODEL)] == []


def test_the_server_takes_from_the_engine_only_data_capacity_and_grammars() -> None:
    taken = {name for module, name in module_imports() if is_in(module, "server") and is_in(name, "engine")}
    data_files = {name for name in taken if name.count(".") <= 1} - set(NO_DATA_FILES)
    assert [n for n in taken - data_files if not any(is_in(n, allowed) for allowed in SERVER_TAKES_FROM_ENGINE)] == []


def test_importing_the_app_does_not_import_torch() -> None:
    code = "import sys, server.api.app; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_before_the_engine_is_launched_no_large_package_is_imported() -> None:
    """What `smoe serve` imports until then delays torch's import in the engine."""
    large = {"fastapi", "starlette", "uvicorn", "jinja2", "tokenizers", "prometheus_client", "torch", "numpy"}
    code = f"import sys, server.cli.main, server.cli.serve, server.lifecycle.serve; print({large!r} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_only_the_settings_read_the_environment() -> None:
    readers = {module_name(path) for path in product_files() if reads_environment(path.read_text())}
    assert readers <= {"server.settings.sources"}


def test_every_import_of_our_modules_finds_one() -> None:
    """In tests too: a module may have been moved while a test that imports it was written."""
    wrong = [
        f"{module} imports {name}" for module, names in import_graph().items() for name in names if is_missing(name)
    ]
    for path in (ROOT / "tests").rglob("*.py"):
        if "node_modules" not in path.parts:
            wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in quick_imports(path) if is_missing(name)]
    assert not wrong


def test_no_other_distribution_owns_a_top_level_package_of_ours() -> None:
    owners = importlib.metadata.packages_distributions()
    for package in (*LAYERS, "smoe"):
        assert set(owners.get(package, [])) <= {"smoe"}, package


def test_every_rule_sees_what_it_forbids() -> None:
    """The rules above pass on an empty graph too; so: the graph is not empty, and the readers find their prey."""
    assert {"server.api.app", "engine.scheduling.scheduler", "model.mixtral", "smoe"} <= set(import_graph())
    assert set(imported_names(ast.parse("def f():\n    from torch import nn"))) == {"torch", "torch.nn"}
    assert "torch" in reachable("engine.execution.model_runner")
    assert reads_environment("import os\nos.environ['X']")
    assert reads_environment("from os import getenv")
    assert ("gemm/gemm.cpp", "gemm/gemm.h") in set(native_includes())
    assert ("server.api.app", "server.errors") in set(module_imports())
    assert not any(map(is_missing, ("tests.support.paths.ROOT", "server.cli.plan", "tests.simulator.bugs.MUTATIONS")))
    assert is_missing("server.cli.gone") and is_missing("tests.gone.helper") and is_missing("tests.simulator.bugs.gone")
    assert {"tests.support.paths", "tests.support.paths.ROOT"} <= set(quick_imports(Path(__file__)))
    upward = [("a.x.one", "a.y.two"), ("a.y.three", "a.x.four")]  # no loop between files, one between folders
    assert not loop_in(upward) and set(loop_in(entries_of("a", upward, "."))) == {"x", "y"}
