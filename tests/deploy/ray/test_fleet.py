"""deploy/ray/fleet.py without Ray: which replicas it starts and drains, and the list that Envoy reads."""

import ast
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.deploy.ray.fake_ray import FakeRay, RayError
from tests.support.hosts.envoy import load
from tests.support.paths import ROOT

FOLDER = ROOT / "deploy" / "ray"
USED_OF_RAY = {"init", "remote", "get", "wait", "kill", "util.get_node_ip_address", "exceptions.RayError"}


@dataclass
class ScriptedReplica:
    """A replica whose state the test sets."""

    command: list[str]
    port: int
    num_requests: int | None = None
    is_lost: bool = False
    is_drained: bool = False

    def check(self) -> Any:
        if self.is_lost:
            raise RayError
        return sys.modules["replica"].Status(f"127.0.0.1:{self.port}", self.num_requests)

    def drain(self) -> int:
        self.is_drained = True
        return 0


class Setting:
    """A fleet of scripted replicas on a clock that stands still."""

    def __init__(self, fleet_module: ModuleType, ray: FakeRay, path: Path) -> None:
        self.replicas: list[ScriptedReplica] = []
        self.ray, self.path, self.now_s = ray, path, 1000.0
        ray.make = self._make
        self.fleet = fleet_module.Fleet(["smoe", "serve"], range(8000, 8004), 1, path, 64, lambda: self.now_s)

    def _make(self, command: list[str], port: int) -> ScriptedReplica:
        self.replicas.append(ScriptedReplica(command, port))
        return self.replicas[-1]

    def listed(self) -> list[int]:
        """Return the ports in Envoy's list."""
        [assignment] = yaml.safe_load(self.path.read_text())["resources"]
        [locality] = assignment["endpoints"]
        return [host["endpoint"]["address"]["socket_address"]["port_value"] for host in locality["lb_endpoints"]]


@pytest.fixture
def fleet_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, FakeRay]]:
    """The program, imported as it is when it is run, with the fake Ray."""
    ray = FakeRay(lambda: None)
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("fleet"), ray
    for name in ("fleet", "replica"):
        sys.modules.pop(name, None)


@pytest.fixture
def make(fleet_module: tuple[ModuleType, FakeRay], tmp_path: Path) -> Callable[[], Setting]:
    return lambda: Setting(*fleet_module, tmp_path / "replicas.yaml")


def test_a_replica_is_listed_when_it_is_ready_and_no_longer_when_it_is_not(make: Callable[[], Setting]) -> None:
    setting = make()
    setting.fleet.look()
    assert setting.listed() == []
    [first] = setting.replicas
    assert (first.command, first.port) == (["smoe", "serve"], 8000)
    first.num_requests = 0
    setting.fleet.look()
    assert setting.listed() == [8000]
    first.is_lost = True  # Ray starts it again on another node
    setting.fleet.look()
    assert setting.listed() == []


def test_replicas_follow_the_load_up_to_their_number(make: Callable[[], Setting]) -> None:
    setting = make()
    for num_requests, expected in ((32, 1), (33, 2), (64, 2), (97, 4), (1000, 4)):
        setting.replicas[0].num_requests = num_requests
        setting.fleet.look()
        assert len(setting.replicas) == expected
    assert [replica.port for replica in setting.replicas] == [8000, 8001, 8002, 8003]
    assert not any(replica.is_drained for replica in setting.replicas)


def test_one_replica_is_removed_in_two_minutes_and_it_is_drained_after_envoy_was_told(
    make: Callable[[], Setting],
) -> None:
    setting = make()
    setting.replicas[0].num_requests = 100
    setting.fleet.look()
    for replica in setting.replicas:
        replica.num_requests = 0
    setting.fleet.look()
    assert setting.listed() == [8000, 8001, 8002, 8003]  # too early
    setting.now_s += 120
    setting.fleet.look()
    assert setting.listed() == [8000, 8001, 8002]
    setting.fleet.look()
    assert setting.listed() == [8000, 8001, 8002]
    last = setting.replicas[-1]
    assert setting.ray.killed == []  # its requests run
    setting.ray.finished = [last]
    setting.fleet.look()
    assert last.is_drained and setting.ray.killed == [last]
    setting.now_s += 1000
    for _ in range(10):
        setting.fleet.look()
        setting.now_s += 120
    assert setting.listed() == [8000]  # the smallest number stays


def test_at_the_end_nothing_is_listed_and_all_are_drained(make: Callable[[], Setting]) -> None:
    setting = make()
    setting.replicas[0].num_requests = 70
    setting.fleet.look()
    setting.fleet.close()
    assert setting.listed() == []
    assert len(setting.replicas) == 3 and all(replica.is_drained for replica in setting.replicas)


def test_the_list_has_the_form_of_the_file_that_envoy_is_tested_with(make: Callable[[], Setting]) -> None:
    setting = make()
    setting.replicas[0].num_requests = 33
    setting.fleet.look()
    setting.replicas[1].num_requests = 0
    setting.fleet.look()
    found, expected = yaml.safe_load(setting.path.read_text()), load("replicas.yaml")
    assert found == expected  # 127.0.0.1:8000 and :8001
    assert not setting.path.with_suffix(".new").exists()


def test_ray_places_one_server_for_so_many_cpus_and_starts_it_again_for_ever(make: Callable[[], Setting]) -> None:
    assert make().ray.options == {"num_cpus": 64, "max_restarts": -1}


def test_no_more_of_ray_is_used_than_the_fake_has() -> None:
    used = set()
    for node in ast.walk(ast.parse((FOLDER / "fleet.py").read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("ray."):
            used.add(ast.unparse(node).removeprefix("ray."))
    assert used - {"util", "exceptions"} == USED_OF_RAY


def test_the_command_of_the_page_is_one_that_the_program_takes(
    fleet_module: tuple[ModuleType, FakeRay], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, ray = fleet_module
    page = (ROOT / "docs" / "operation" / "fleet.md").read_text()
    [line] = [line for line in page.splitlines() if line.startswith("python deploy")]
    given: list[Any] = []

    class Stopped(Exception):
        """The end of the test's fleet."""

    def make(*arguments: Any) -> None:
        given.extend(arguments)
        raise Stopped

    monkeypatch.setattr(sys, "argv", line.split()[1:])
    monkeypatch.setattr(module, "Fleet", make)
    monkeypatch.setattr(ray, "init", lambda **options: None, raising=False)
    with pytest.raises(Stopped):
        module.main()
    command, ports, smallest, path, cpus = given
    assert command == ["smoe", "serve", "/models/mixtral"]
    assert (ports, smallest, path, cpus) == (range(8000, 8008), 1, Path("/etc/envoy/replicas.yaml"), 64.0)
