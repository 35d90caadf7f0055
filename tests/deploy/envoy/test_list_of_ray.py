"""A real Envoy with deploy/envoy/envoy-eds.yaml follows the list that deploy/ray/fleet.py writes."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.deploy.ray.fake_ray import FakeRay
from tests.support.conditions import wait_until
from tests.support.hosts.envoy import configuration, running_envoy
from tests.support.paths import ROOT


def test_envoy_follows_the_list_also_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = {8001: 0}  # requests of the replicas that are ready, by port

    def make(command: list[str], port: int) -> SimpleNamespace:
        def check() -> SimpleNamespace:
            return SimpleNamespace(address=f"127.0.0.1:{port}", num_requests=states.get(port))

        return SimpleNamespace(check=check)

    monkeypatch.setitem(sys.modules, "ray", FakeRay(make))  # type: ignore[arg-type]
    monkeypatch.syspath_prepend(str(ROOT / "deploy" / "ray"))
    path = tmp_path / "replicas.yaml"
    config = configuration("envoy-eds.yaml", ["127.0.0.1:9"], path)
    try:
        fleet = importlib.import_module("fleet").Fleet([], [8001, 8002], 2, path, 1)
        with running_envoy(config) as proxy:
            for ready in ({8001: 0}, {}, {8001: 0, 8002: 5}):
                states.clear()
                states.update(ready)
                fleet.look()
                wait_until(lambda ready=ready: set(proxy.hosts()) == {f"127.0.0.1:{port}" for port in ready})  # type: ignore[misc]
    finally:
        for name in ("fleet", "replica"):
            sys.modules.pop(name, None)
