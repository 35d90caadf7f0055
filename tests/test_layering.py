"""The import rules: server -> engine -> model, never back; no torch in the API process; one reader of the environment.

Imports are read from the source (those inside functions too), so a lazy import does not get around a rule.
"""

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

LAYERS = ("server", "engine", "model")
MAY_IMPORT = {
    "server": {"server", "engine"},
    "engine": {"engine", "model"},
    "model": {"model"},
    "smoe": {"server", "engine"},  # the face that users import: text and engine in one process
}
PACKAGE_PATH_ONLY = {("server.model_location", "model")}  # where the bundled checkpoint lies
ENGINE_MODULES_WITH_TORCH = {
    "engine.startup.backend",
    "engine.startup.probe",
    "engine.execution.input_batch",
    "engine.execution.logit_masks",
    "engine.execution.expert_stats",
    "engine.execution.persistent_batch",
    "engine.execution.device_transfer",
    "engine.execution.expert_routing",
    "engine.execution.sampler",
    "engine.execution.decode_batch",
    "engine.execution.model_runner",
    "engine.startup.loading",
    "engine.execution.step_faults",
    "engine.startup.device_memory",
}
SANS_IO = (
    "engine.scheduling.scheduler",
    "engine.scheduling.block_pool",
    "engine.scheduling.step_plan",
    "engine.types",
    "engine.messages",
    "engine.config",
)


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


def reads_environment(tree: ast.AST) -> bool:
    names = {"environ", "environb", "getenv"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and any(alias.name in names for alias in node.names)
        )
        for node in ast.walk(tree)
    )


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


def test_torch_stays_in_the_few_engine_modules_that_touch_tensors() -> None:
    direct = {
        module
        for module, names in import_graph().items()
        if module.startswith("engine") and any(top_level(name) == "torch" for name in names)
    }
    assert direct <= ENGINE_MODULES_WITH_TORCH


@pytest.mark.parametrize("module", SANS_IO)
def test_the_scheduling_core_reaches_no_torch_no_socket_and_no_clock(module: str) -> None:
    assert not reachable(module) & {"torch", "numpy", "socket", "asyncio", "time", "random"}


def test_no_server_module_reaches_torch() -> None:
    reaching = [module for module in import_graph() if top_level(module) == "server" and "torch" in reachable(module)]
    assert not reaching


def test_importing_the_app_does_not_import_torch() -> None:
    code = "import sys, server.api.app; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_only_the_settings_read_the_environment() -> None:
    readers = {module_name(path) for path in product_files() if reads_environment(ast.parse(path.read_text()))}
    assert readers <= {"server.settings"}


def test_no_other_distribution_owns_a_top_level_package_of_ours() -> None:
    owners = importlib.metadata.packages_distributions()
    for package in (*LAYERS, "smoe"):
        assert set(owners.get(package, [])) <= {"smoe"}, package


def test_every_rule_sees_what_it_forbids() -> None:
    """The rules above pass on an empty graph too; so: the graph is not empty, and the readers find their prey."""
    assert {"server.api.app", "engine.scheduling.scheduler", "model.mixtral", "smoe"} <= set(import_graph())
    assert set(imported_names(ast.parse("def f():\n    from torch import nn"))) == {"torch", "torch.nn"}
    assert "torch" in reachable("engine.execution.model_runner")
    assert reads_environment(ast.parse("import os\nos.environ['X']"))
    assert reads_environment(ast.parse("from os import getenv"))
