"""The oldest versions that pyproject.toml allows have no vulnerability that is known here."""

import re
import tomllib
from importlib.metadata import version

import pytest

from tests.support.paths import ROOT

FIRST_FIXED = {
    "sentencepiece": ("0.2.1", "CVE-2026-1260: memory errors on a damaged model file"),
    "h11": ("0.16.0", "CVE-2025-43859: malformed chunks are accepted, which allows request smuggling"),
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
