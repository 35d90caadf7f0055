"""The oldest versions that pyproject.toml allows have no known vulnerability; the image's versions are locked."""

import re
import sys
import tomllib
from importlib.metadata import packages_distributions, version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT
from tests.test_layering import LAYERS, import_graph

LOCK = ROOT / "deploy" / "requirements.lock"
OURS = {*LAYERS, "smoe"}
OPTIONAL = {"triton", "matplotlib", "psutil", "transformers", "opentelemetry"}  # extras
PINNED = {"pydantic_core"}  # each version of pydantic needs one version of it

FIRST_FIXED = {
    "sentencepiece": ("0.2.1", "CVE-2026-1260: memory errors on a damaged model file"),
    "h11": ("0.16.0", "CVE-2025-43859: malformed chunks are accepted, which allows request smuggling"),
    "starlette": ("0.49.1", "CVE-2025-62727 and CVE-2025-54121: a header or a form blocks the event loop"),
    "jinja2": ("3.1.6", "CVE-2025-27516: the attr filter leaves the sandbox"),
}


def release(text: str) -> tuple[int, ...]:
    """Parse "0.2.1" as (0, 2, 1); zeros at the end do not count."""
    numbers = [int(number) for number in re.findall(r"\d+", text)][:4]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def floor_of(package: str) -> str:
    """Return the version behind >= in the runtime dependencies."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (floor,) = (match[1] for text in dependencies if (match := re.match(rf"{package}>=([\d.]+)", text)))
    return floor


@pytest.mark.parametrize("package", FIRST_FIXED)
def test_the_floor_excludes_versions_with_known_vulnerabilities(package: str) -> None:
    fixed, reason = FIRST_FIXED[package]
    assert release(floor_of(package)) >= release(fixed), reason
    assert release(version(package)) >= release(fixed), reason


def locked() -> dict[str, list[str]]:
    """Return the locked version of each package (two if they depend on Python's), each checked to have hashes."""
    versions: dict[str, list[str]] = {}
    for requirement in LOCK.read_text().replace("\\\n", " ").splitlines():
        match = re.match(r"([a-z0-9-]+)==([^ ;]+)(?: ;.*?)? +--hash=sha256:[0-9a-f]{64}", requirement)
        assert match, requirement
        versions.setdefault(match[1], []).append(match[2])
    return versions


def runtime_requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["tokenizers"]]


def test_the_image_installs_allowed_versions_of_all_dependencies_by_hash() -> None:
    versions = locked()
    for requirement in runtime_requirements():
        if requirement.name != "torch":  # from an index of its own
            found = versions[canonicalize_name(requirement.name)]
            assert all(version in requirement.specifier for version in found), requirement
    assert "--require-hashes -r requirements.lock" in (ROOT / "Dockerfile").read_text()


def test_every_imported_package_is_declared() -> None:
    """A package that comes along with another one may leave with it, and has no lower bound."""
    declared = {canonicalize_name(requirement.name) for requirement in runtime_requirements()}
    owners = packages_distributions()
    for module, names in import_graph().items():
        for top in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - OURS - OPTIONAL - PINNED:
            assert declared & {canonicalize_name(owner) for owner in owners[top]}, f"{module} imports {top}"
