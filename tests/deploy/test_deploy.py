"""Files in deploy/: each is valid, and every query uses metrics that the server exposes."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.observability.metrics import Metrics
from server.settings.sources import load_settings
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
VENV_BIN = Path(sys.executable).parent
SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
YAMLLINT = """
extends: default
rules:
  line-length: {max: 140}
  document-start: disable
"""


def yaml_files() -> list[Path]:
    return sorted(path for path in DEPLOY.rglob("*") if path.suffix in (".yml", ".yaml"))


def dashboards() -> list[Path]:
    return sorted(DEPLOY.rglob("dashboards/*.json"))


def dashboard_queries() -> Iterator[str]:
    """Yield the PromQL of every panel, with Grafana's variables replaced as Grafana does."""
    for path in dashboards():
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                yield re.sub(
                    r"\$(instance|model)\b",
                    ".*",
                    target["expr"].replace("$__rate_interval", "5m").replace("$__range", "30m"),
                )


def dashboard_variables() -> Iterator[str]:
    for path in dashboards():
        for variable in json.loads(path.read_text())["templating"]["list"]:
            yield variable["definition"]


def alert_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> list[str]:
    return [*dashboard_queries(), *(rule["expr"] for rule in alert_rules())]


def exposed_names() -> set[str]:
    """Return sample names from the TYPE lines of a scrape, which list families without samples as well."""
    scrape = Metrics("a-model").exposition.render().decode()
    families = re.findall(r"^# TYPE (\S+) (\S+)$", scrape, re.MULTILINE)
    return {name + suffix for name, kind in families for suffix in SUFFIXES[kind]}


def run(*command: str | Path) -> None:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("query", [*queries(), *dashboard_variables()])
def test_a_query_uses_only_metrics_that_the_server_exposes(query: str) -> None:
    names = set(re.findall(r"\b(?:smoe_|vllm:)\w+", query))
    assert names <= exposed_names()
    assert names or query == 'up{job="smoe"} == 0'


def test_the_dashboard_shows_every_family_of_our_own() -> None:
    shown = " ".join(dashboard_queries())
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed_names() if name.startswith("smoe_")}
    assert {name for name in families if name not in shown} == {"smoe_requests_received_total"}  # used by an alert


@pytest.mark.prometheus
def test_every_query_parses(tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries())]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    run("promtool", "check", "rules", path)


@pytest.mark.prometheus
def test_prometheus_accepts_its_configuration_and_rules() -> None:
    run("promtool", "check", "config", "--lint=all", PROMETHEUS / "prometheus.yml")


@pytest.mark.prometheus
def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    run("promtool", "test", "rules", PROMETHEUS / "tests" / "alerts_test.yml")


@pytest.mark.prometheus
def test_the_scrape_is_lint_clean_under_our_own_names() -> None:
    scrape = Metrics("a-model", compat="none").exposition.render()
    result = subprocess.run(["promtool", "check", "metrics"], input=scrape, capture_output=True)
    assert (result.returncode, result.stdout + result.stderr) == (0, b"")


def test_every_alert_has_a_description_and_a_section_of_the_runbook_and_no_section_is_left_over() -> None:
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs" / "operation" / "runbook.md").read_text(), re.MULTILINE)
    assert sections == [rule["alert"] for rule in alert_rules()]
    for rule in alert_rules():
        notes = rule["annotations"]
        assert notes["runbook"] == f"docs/operation/runbook.md#{rule['alert'].lower()}"
        assert len(notes["description"].split()) >= 8, rule["alert"]


def test_every_alert_has_a_test() -> None:
    tests = yaml.safe_load((PROMETHEUS / "tests" / "alerts_test.yml").read_text())["tests"]
    tested = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert tested == {rule["alert"] for rule in alert_rules()}


@pytest.mark.parametrize("path", yaml_files(), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_yaml_is_well_formed(path: Path) -> None:
    run(VENV_BIN / "yamllint", "--strict", "--config-data", YAMLLINT, path)


def panels() -> dict[str, Any]:
    return {
        panel["title"]: panel
        for path in dashboards()
        for panel in json.loads(path.read_text())["panels"]
        if panel["type"] != "row"
    }


def test_the_dashboard_draws_layers_by_experts() -> None:
    panel = panels()["Share of each expert, by layer"]
    [matrix] = [step["options"] for step in panel["transformations"] if step["id"] == "groupingToMatrix"]
    assert (matrix["rowField"], matrix["columnField"]) == ("layer", "expert")
    [target] = panel["targets"]
    assert "sum by (layer, expert)" in target["expr"] and target["format"] == "table"
    assert panel["fieldConfig"]["defaults"]["custom"]["cellOptions"]["type"] == "color-background"


@pytest.mark.parametrize("title", ["Engine", "Waiting", "KV cache"])
def test_a_figure_that_needs_attention_has_a_colour(title: str) -> None:
    panel = panels()[title]
    defaults = panel["fieldConfig"]["defaults"]
    steps = defaults.get("thresholds", {}).get("steps", [])
    values = [step["value"] for step in steps]
    assert defaults.get("mappings") or (values[0] is None and values[1:] == sorted(values[1:]) and len(values) > 1)
    assert panel["options"]["colorMode"] == "background"


def test_tokens_per_second_are_counted_as_they_come() -> None:
    [target] = panels()["Tokens per second"]["targets"]
    assert "smoe_step_generated_tokens_total" in target["expr"]


def test_panels_of_a_dashboard_do_not_overlap() -> None:
    for path in dashboards():
        cells = [cell for panel in json.loads(path.read_text())["panels"] for cell in grid_cells(panel["gridPos"])]
        assert len(cells) == len(set(cells))


def grid_cells(position: dict[str, int]) -> list[tuple[int, int]]:
    columns = range(position["x"], position["x"] + position["w"])
    return [(x, y) for x in columns for y in range(position["y"], position["y"] + position["h"])]


def test_compose_mounts_only_files_that_exist() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    mounts = [mount for service in services.values() for mount in service.get("volumes", [])]
    sources = [source for source, *_ in (mount.split(":") for mount in mounts) if source.startswith(".")]
    assert sources
    for source in sources:
        assert (DEPLOY / source).exists(), source


def test_compose_has_a_volume_where_triton_writes_in_the_image_of_the_dockerfile() -> None:
    """A new volume takes the owner of the image's directory: without one it is root's, and the server is not root."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    smoe = compose["services"]["smoe"]
    names = [volume.removesuffix(":/home/smoe/.triton") for volume in smoe["volumes"]]
    assert smoe["read_only"] and set(names) & set(compose["volumes"])
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "mkdir /home/smoe/.triton" in dockerfile and "chown 10001:0 /home/smoe/.triton" in dockerfile


def test_compose_reaps_orphans_and_limits_memory_and_processes_of_every_service() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for service in services.values():
        assert service["init"] is True
        assert re.fullmatch(r"[1-9]\d*g|\$\{MEMORY_LIMIT:-[1-9]\d*g\}", service["mem_limit"])
        assert 0 < service["pids_limit"] <= 1024
    smoe = services["smoe"]
    assert smoe["memswap_limit"] == smoe["mem_limit"]  # no swap
    assert smoe["ulimits"]["nofile"] >= 65536
    assert all("size=" in mount for mount in smoe["tmpfs"])


def test_compose_serves_what_its_environment_names_and_the_bundled_model_without() -> None:
    """Variables of compose reach the settings of the same name; without them the values are those of no variable."""
    smoe = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["smoe"]
    passed = {name: value for name, value in smoe["environment"].items() if name.startswith("SMOE_")}
    hosts = passed.pop("SMOE_ALLOWED_HOSTS").replace("${SMOE_ALLOWED_HOSTS:-host.docker.internal}", "a.name")
    assert passed == {name: f"${{{name}:-}}" for name in ("SMOE_MODEL", "SMOE_API_KEY")}
    with pytest.MonkeyPatch.context() as patch:
        for name in passed:
            patch.setenv(name, "")
        patch.setenv("SMOE_ALLOWED_HOSTS", hosts)
        settings = load_settings({})
    assert (settings.model_names, settings.api_keys) == (("smoe-demo",), ())
    [job] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    scraped = {target.partition(":")[0] for config in job["static_configs"] for target in config["targets"]}
    assert set(settings.allowed_hosts) == {*scraped, "a.name"}
    assert smoe["volumes"][0] == "${MODELS:-models}:/models:ro"


def test_compose_opens_ports_on_loopback_alone() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_dockerfile_is_lint_clean() -> None:
    run(VENV_BIN / "hadolint", "Dockerfile")


def test_dockerignore_allows_exactly_the_files_that_the_build_copies() -> None:
    """.dockerignore excludes everything except the paths that it lists with `!`."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    copied = {name for line in copies for name in line.split()}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
