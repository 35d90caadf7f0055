"""Documentation names only files, commands, flags, variables, endpoints and anchors that exist."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from server.api import routes
from server.cli.foreign_words import FOREIGN_FLAGS as FLAGS_OF_SERVERS
from server.cli.main import app
from server.settings.settings import PREFIX, Settings
from tests.agents.programs import CONTINUE
from tests.support.paths import DEMO, ROOT

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), DEMO / "README.md"], key=lambda page: page.relative_to(ROOT)
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
MAX_README_LINES = 120

# Flags of other programs that the pages name.
FOREIGN_FLAGS = {
    "--unix-socket",  # curl
    *("--build", "--build-arg", "--init"),  # docker
    *("--exclude", "--include", "--local-dir"),  # hf
    *("--torch-backend", "--pip-args", "--extra-index-url"),  # uv, pipx, pip
    *("--key",),  # llm
    *("--auth-type",),  # qwen
    *("--scale", "--part", "--seed", "--seeds", "--minutes"),  # pytest tests, python -m tests.simulator, tests.soak
    *("--count", "--seconds"),  # python -m tests.measure.reliability.noninterference, tests.measure.reliability.attacks
    *("--output", "--tiny"),  # python -m tests.gpu.first_light
    *("--param",),  # gcc
    *("--no-cache-prompt", "--cache-ram"),  # llama-server
    *("--from-literal",),  # kubectl
    *("--cpus", "--replicas"),  # deploy/ray/fleet.py
    *("--force",),  # ray stop
    *("--max-restarts",),  # torchrun
    *("--hosts", "--kills"),  # tests.measure.reliability.rank_kills
}
FOREIGN_VARIABLES = {"SMOE_CONFIG", "SMOE_URL"}  # no fields of Settings: the file itself, and a variable of tests

PATH = re.compile(r"(?<![\w/.:*-])(?:(?:server|engine|model|tests|docs|deploy|\.github)/[\w./*-]*|\.ci/run)")
FILE = re.compile(r"`([\w-]+\.(?:py|cpp|h|md|js))`")
MODULE = re.compile(r"python -m ((?:tests|model|server|engine)[\w.]*)")
CODE = re.compile(r"^```.*?^```|`[^`]+`", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?<!from )(?<![\w/-])smoe ((?:bench )?[a-z]+(?:-[a-z]+)*)((?:[^`\n#|;&\\]|\\\n)*)")
FLAG = re.compile(r"(?<![\w<-])--[a-z][a-z-]+")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
ENDPOINT = re.compile(r"`(GET|POST) (/[\w/{}.]*)")


@cache
def commands() -> dict[str, set[str]]:
    """Subcommand, as "serve" or "bench serve" -> its flags."""
    return dict(_commands(typer.main.get_command(app), ()))


def _commands(command: Any, names: tuple[str, ...]) -> Iterator[tuple[str, set[str]]]:
    params = command.get_params(typer.Context(command))
    yield " ".join(names), {flag for param in params for flag in (*param.opts, *param.secondary_opts)}
    for name, child in getattr(command, "commands", {}).items():
        yield from _commands(child, (*names, name))


def all_flags() -> set[str]:
    settings = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
    completion = {"--install-completion", "--show-completion"}  # added by typer where it finds a shell
    return (
        settings
        | completion
        | FOREIGN_FLAGS
        | set(FLAGS_OF_SERVERS)
        | {flag for flags in commands().values() for flag in flags}
    )


def code_of(text: str) -> str:
    """Code blocks without comments, and code spans."""
    return re.sub(r"(^|\s)# .*", "", "\n".join(CODE.findall(text)))


def missing_paths(text: str) -> list[str]:
    """Paths from the root, file names in backticks and modules of `python -m` that do not exist."""
    paths = [found.rstrip(".") for found in PATH.findall(text)]
    paths += [module.rstrip(".").replace(".", "/") for module in MODULE.findall(text)]
    missing = [path for path in paths if not any(ROOT.glob(path)) and not (ROOT / f"{path}.py").exists()]
    return missing + [name for name in FILE.findall(text) if name not in all_file_names()]


@cache
def all_file_names() -> set[str]:
    folders = ("server", "engine", "model", "tests", "docs", "deploy")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*") if "node_modules" not in path.parts]
    return {path.name for path in [*files, *ROOT.iterdir()]}


def wrong_commands(text: str) -> list[str]:
    """`smoe xyz` without such a subcommand, and flags that the subcommand does not have."""
    wrong = []
    for name, rest in COMMAND.findall(code_of(text)):
        flags = commands().get(name)
        if flags is None:
            wrong.append(f"smoe {name}")
        else:
            wrong += [f"smoe {name} {flag}" for flag in FLAG.findall(rest) if flag not in flags]
    return wrong


def wrong_flags(text: str) -> list[str]:
    return sorted(set(FLAG.findall(code_of(text))) - all_flags())


def wrong_variables(text: str) -> list[str]:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | FOREIGN_VARIABLES
    return sorted(set(re.findall(r"\bSMOE_[A-Z_]*[A-Z]\b", text)) - known)


def wrong_targets(text: str) -> list[str]:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    return sorted(set(re.findall(r"(?<![\w-])make ([a-z][a-z-]*)", code_of(text))) - targets)


def wrong_endpoints(text: str) -> list[str]:
    return [f"{method} {path}" for method, path in ENDPOINT.findall(text) if (method, path) not in endpoints()]


@cache
def endpoints() -> set[tuple[str, str]]:
    modules = [
        importlib.import_module(f"{routes.__name__}.{module.name}") for module in pkgutil.iter_modules(routes.__path__)
    ]
    found = [route for module in modules for route in module.router.routes]
    return {(method, re.sub(r":\w+}", "}", route.path)) for route in found for method in route.methods}


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links whose file or anchor does not exist."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [
        link
        for link in LINK.findall(prose)
        if not link.startswith(("http://", "https://")) and not _resolves(page, link)
    ]


def _resolves(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page if not name else page.parent / name
    if not target.exists():
        return False
    return not anchor or anchor in {slug(heading) for heading in HEADING.findall(target.read_text())}


def page_texts() -> list[Any]:
    return [pytest.param(page, page.read_text(), id=name) for page, name in zip(PAGES, NAMES, strict=True)]


@pytest.mark.parametrize(("page", "text"), page_texts())
def test_a_page_names_only_what_exists(page: Path, text: str) -> None:
    assert missing_paths(text) == []
    assert wrong_commands(text) == []
    assert wrong_flags(text) == []
    assert wrong_variables(text) == []
    assert wrong_targets(text) == []
    assert wrong_endpoints(text) == []
    assert broken_links(page, text) == []


def test_the_readme_fits_on_a_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in LINK.findall(page.read_text())
        if not link.startswith(("#", "http"))
    }
    assert [name for page, name in zip(PAGES, NAMES, strict=True) if page not in linked] == ["README.md"]


def test_each_decision_has_a_number_of_its_own() -> None:
    """Numbers may be missing: two branches that each add a decision choose theirs before either is merged."""
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))]
    assert numbers and len(numbers) == len(set(numbers))


def test_the_recipe_of_continue_has_what_its_tested_file_has() -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    [(path, recipe)] = re.findall(r"In `~/(\.continue/[^`]+)`:\n\n```yaml\n(.*?)```", page, re.DOTALL)
    tested = CONTINUE.files[path].replace("@URL@", "http://127.0.0.1:8000")
    assert yaml.safe_load(recipe).keys() == yaml.safe_load(tested).keys()


def test_every_check_sees_what_it_forbids() -> None:
    assert missing_paths("`server/nowhere.py`, tests/nothing/ and `nobody.py`") == [
        "server/nowhere.py",
        "tests/nothing/",
        "nobody.py",
    ]
    assert missing_paths("`python -m tests.nowhere`") == ["tests/nowhere"]
    assert wrong_commands("`smoe fly`, `smoe plan --port 1`, `smoe bench serve --stub`") == [
        "smoe fly",
        "smoe plan --port",
    ]
    assert wrong_flags("`--no-such-flag` and `--port`") == ["--no-such-flag"]
    assert wrong_variables("SMOE_PORT, SMOE_*, SMOE_NOTHING") == ["SMOE_NOTHING"]
    assert wrong_targets("`make serve`, `make coffee`; make nothing") == ["coffee"]
    assert wrong_endpoints("`GET /health`, `POST /health`") == ["POST /health"]
    readme = ROOT / "README.md"
    assert broken_links(readme, "[a](docs/nowhere.md) [b](#nowhere) [c](README.md#quickstart)") == [
        "docs/nowhere.md",
        "#nowhere",
    ]
