"""smoe servers on the nodes of a Ray cluster, behind Envoy with deploy/envoy/envoy-eds.yaml.

docs/operation/fleet.md explains it.

    python deploy/ray/fleet.py --replicas 1,8 --cpus 64 -- smoe serve /models/mixtral

Ray places one server for each --cpus of a node and starts it elsewhere when the node is lost. Requests never pass
through Ray: Envoy, on the machine that runs this program, reads the list of servers that it writes.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from replica import Replica, Status

LOOK_S = 2.0
ANSWER_S = 10.0
SHRINK_S = 120.0  # between two servers that are removed: each takes its prefix cache along
REQUESTS_PER_REPLICA = 32  # running and waiting
CLUSTER = "smoe"  # in envoy-eds.yaml


class ReplicaActor(Replica):
    """A replica on the node that Ray has chosen."""

    def __init__(self, command: Sequence[str], port: int) -> None:
        super().__init__(command, ray.util.get_node_ip_address(), port)


class Fleet:
    """Keeps as many replicas as the load needs, and Envoy's list of those that are ready."""

    def __init__(
        self,
        command: Sequence[str],
        ports: Sequence[int],
        smallest: int,
        path: Path,
        cpus: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ports`: one for each replica that there may be; `smallest`: number of replicas without load."""
        self._command = command
        self._ports = ports
        self._smallest = smallest
        self._path = path
        self._actor = ray.remote(num_cpus=cpus, max_restarts=-1)(ReplicaActor)
        self._clock = clock
        self._shrunk_s = clock()
        self._listed: list[str] | None = None
        self._actors: list[Any] = []
        self._draining: list[tuple[Any, Any]] = []  # removed replicas that finish requests, and their results
        self._add(smallest)

    def look(self) -> None:
        """Check all replicas, write the list of those that are ready, and add or remove replicas."""
        self._end_drained()
        states = [state for state in map(_state_of, self._actors) if state is not None]
        ready = [state for state in states if state.num_requests is not None]
        self._list([state.address for state in ready])
        num_requests = sum(state.num_requests or 0 for state in ready)
        wanted = max(self._smallest, min(len(self._ports), -(-num_requests // REQUESTS_PER_REPLICA)))
        if wanted > len(self._actors):
            self._add(wanted - len(self._actors))
        elif wanted < len(self._actors) and self._clock() - self._shrunk_s >= SHRINK_S:
            self._shrunk_s = self._clock()
            self._remove_last(ready)

    def close(self) -> None:
        """Drain all replicas."""
        self._list([])
        results = [*(actor.drain.remote() for actor in self._actors), *(result for _, result in self._draining)]
        ray.wait(results, num_returns=len(results))

    def _add(self, count: int) -> None:
        for port in self._ports[len(self._actors) :][:count]:
            self._actors.append(self._actor.remote(self._command, port))

    def _remove_last(self, ready: Sequence[Status]) -> None:
        """Remove the newest replica. New requests go to others at once, and those that run there finish."""
        actor = self._actors.pop()
        state = _state_of(actor)
        self._list([other.address for other in ready if state is None or other.address != state.address])
        self._draining.append((actor, actor.drain.remote()))

    def _end_drained(self) -> None:
        for entry in list(self._draining):
            actor, result = entry
            finished, _ = ray.wait([result], timeout=0)
            if finished:
                ray.kill(actor)
                self._draining.remove(entry)

    def _list(self, addresses: list[str]) -> None:
        """Write the list if it has changed, by a move: Envoy does not read a file that is written in place."""
        if addresses == self._listed:
            return
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(_cluster_of(addresses)))  # JSON is YAML
        new.rename(self._path)
        self._listed = addresses


def _state_of(actor: Any) -> Status | None:
    """Return the state of a replica; None while Ray has none, for example because its node is lost."""
    try:
        state: Status = ray.get(actor.check.remote(), timeout=ANSWER_S)
    except ray.exceptions.RayError:
        return None
    return state


def _cluster_of(addresses: Sequence[str]) -> dict[str, Any]:
    """Return the content of Envoy's file, as in deploy/envoy/replicas.yaml."""
    hosts = [address.rpartition(":") for address in addresses]
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
        for host, _, port in hosts
    ]
    assignment = {
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": CLUSTER,
        "endpoints": [{"lb_endpoints": endpoints}],
    }
    return {"resources": [assignment]}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", default="1,8", help="fewest and most servers")
    parser.add_argument("--cpus", type=float, required=True, help="CPUs of a server: those of a node for one on each")
    parser.add_argument("--first-port", type=int, default=8000)
    parser.add_argument("--file", type=Path, default=Path("/etc/envoy/replicas.yaml"))
    parser.add_argument("command", nargs="+", help="smoe serve MODEL ..., without --host and --port")
    options = parser.parse_args()
    smallest, most = (int(part) for part in options.replicas.split(","))
    ray.init(address="auto", runtime_env={"working_dir": str(Path(__file__).parent)})
    ports = range(options.first_port, options.first_port + most)
    fleet = Fleet(options.command, ports, smallest, options.file, options.cpus)
    try:
        while True:
            fleet.look()
            time.sleep(LOOK_S)
    finally:
        fleet.close()


if __name__ == "__main__":
    main()
