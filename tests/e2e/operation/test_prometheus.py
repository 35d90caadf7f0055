"""Debian's Prometheus scrapes a real server; every query of the dashboard and the alerts returns data."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.servers.running import RunningServer

pytestmark = pytest.mark.prometheus
DEPLOY = ROOT / "deploy"
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def prometheus(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Prometheus that scrapes the server every second and has data of several scrapes."""
    binary = shutil.which("prometheus")
    assert binary, "Debian: apt-get install prometheus"
    folder = tmp_path_factory.mktemp("prometheus")
    target = server.url.removeprefix("http://")
    scrape = {"job_name": "smoe", "static_configs": [{"targets": [target]}]}
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [binary, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    process = subprocess.Popen([*command, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL)
    try:
        server.complete("It was", max_tokens=20, n=2)
        _wait_for(f"http://{address}", "count_over_time(smoe_requests_received_total[1m]) > 3")
        server.complete("It was", max_tokens=20)
        _wait_for(f"http://{address}", "increase(smoe_generation_tokens_total[1m]) > 0")
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def query(url: str, text: str) -> list[object]:
    response = httpx.get(url + "/api/v1/query", params={"query": text}, timeout=30)
    assert response.status_code == 200, (text, response.text)
    return list(response.json()["data"]["result"])


def _wait_for(url: str, text: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(url + "/-/ready").status_code == 200 and query(url, text):
                return
        except httpx.TransportError:
            pass  # not listening yet
    raise AssertionError(f"no data for {text}")


def expressions(node: object) -> Iterator[str]:
    """Yield every PromQL expression of a dashboard."""
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def without_variables(expression: str) -> str:
    """Replace Grafana's variables as Grafana does."""
    expression = re.sub(r"\$\{?__rate_interval\}?|\$\{?__interval\}?|\$\{?__range\}?", "1m", expression)
    return re.sub(r"\$\{?\w+(:\w+)?\}?", ".*", expression)


def test_every_query_of_the_dashboard_returns_data(prometheus: str) -> None:
    files = list((DEPLOY / "grafana").rglob("*.json"))
    found = [without_variables(text) for file in files for text in expressions(json.loads(file.read_text()))]
    assert len(found) > 10
    empty = [text for text in found if not query(prometheus, text)]
    assert not empty


def test_every_alert_is_about_series_that_exist(prometheus: str) -> None:
    rules = [rule for file in (DEPLOY / "prometheus").glob("*.y*ml") for rule in _rules(file)]
    assert rules
    names = {name for rule in rules for name in re.findall(r"\bsmoe_\w+", rule["expr"])}
    missing = [name for name in names if not query(prometheus, name)]
    assert not missing


def _rules(file: Path) -> list[dict[str, str]]:
    content = yaml.safe_load(file.read_text())
    return [rule for group in content.get("groups", []) for rule in group["rules"]]


def test_the_names_that_vllm_dashboards_use_are_there(prometheus: str) -> None:
    for name in ("vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:time_to_first_token_seconds_bucket"):
        assert query(prometheus, f'{{__name__="{name}"}}')
