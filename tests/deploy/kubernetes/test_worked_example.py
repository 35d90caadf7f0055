"""docs/operation/capacity.md: its overlay builds on the base, is valid, and has the numbers of the plan above it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from server.settings.sources import load_settings
from tests.deploy.kubernetes.test_manifests import FOLDER, VERSIONS, Object, validate
from tests.support.paths import ROOT

pytestmark = pytest.mark.kustomize
PAGE = (ROOT / "docs" / "operation" / "capacity.md").read_text()
MORE = 2  # servers than predicted, as the page says


@pytest.fixture
def deployment(tmp_path: Path) -> Object:
    """The Deployment that kustomize makes of the page's overlay."""
    shutil.copytree(FOLDER / "base", tmp_path / "base")
    overlay = tmp_path / "overlays" / "example"
    overlay.mkdir(parents=True)
    [text] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (overlay / "kustomization.yaml").write_text(text)
    result = subprocess.run(["kustomize", "build", overlay], capture_output=True, text=True)
    assert result.returncode == 0 and "deprecated" not in result.stderr, result.stderr
    [found] = [item for item in yaml.safe_load_all(result.stdout) if item["kind"] == "Deployment"]
    return dict(found)


def test_the_overlay_of_the_worked_example_is_valid_and_has_the_numbers_of_its_plan(deployment: Object) -> None:
    for version in VERSIONS:
        validate(deployment, version)
    plan = PAGE[: PAGE.index("```yaml")].rpartition("verdict: ")[2]
    servers, command = plan.splitlines()[:2]
    assert deployment["spec"]["replicas"] == int(servers.split()[0]) + MORE
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    flags = dict(argument.removeprefix("--").split("=") for argument in container["args"] if "=" in argument)
    settings = load_settings({name.replace("-", "_"): value for name, value in flags.items()})
    assert f"--max-num-batched-tokens {settings.max_num_batched_tokens}" in command
    assert f"--quantization {settings.quantization}" in command
    [memory] = re.findall(r"--memory (\d+)GiB --quantization int8", PAGE)
    assert container["resources"]["limits"]["memory"] == f"{memory}Gi"
