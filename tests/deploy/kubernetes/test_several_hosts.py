"""deploy/k8s/overlays/tp: pods that share a model are the base's pods with flags of a group, whose leader serves."""

from typing import Any

import pytest

from server.settings.settings import Settings
from server.settings.sources import load_settings
from tests.deploy.kubernetes.test_manifests import VERSIONS, Object, built, container_of, of_kind, validate

pytestmark = pytest.mark.kustomize
FOLDER = "overlays/tp"
VARIABLES = {"$(LWS_GROUP_SIZE)", "$(LWS_WORKER_INDEX)", "$(LWS_LEADER_ADDRESS)"}  # set by the controller
GROUP_FLAGS = {"tensor_parallel_size", "nnodes", "node_rank", "master_addr", "master_port"}


def template() -> Object:
    found: Object = of_kind(FOLDER, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    return found


def container() -> Object:
    [found] = template()["workerTemplate"]["spec"]["containers"]
    return dict(found)


def flags() -> dict[str, str]:
    pairs = [argument.removeprefix("--").split("=") for argument in container()["args"][2:]]
    return {name.replace("-", "_"): value for name, value in pairs}


def settings_of(worker_index: int) -> Settings:
    """Return the settings of a pod, as the controller fills in its variables."""
    values = {
        "$(LWS_GROUP_SIZE)": str(template()["size"]),
        "$(LWS_WORKER_INDEX)": str(worker_index),
        "$(LWS_LEADER_ADDRESS)": "smoe-tp-0.smoe-tp.default",
    }
    return load_settings({name: values.get(value, value) for name, value in flags().items()})


def test_every_pod_has_its_place_in_the_group() -> None:
    assert {value for value in flags().values() if value.startswith("$")} == VARIABLES
    pods = [settings_of(index) for index in range(template()["size"])]
    assert [pod.node_rank for pod in pods] == [*range(len(pods))]
    assert {(pod.nnodes, pod.master_addr) for pod in pods} == {(len(pods), "smoe-tp-0.smoe-tp.default")}


def test_pods_are_those_of_the_base_but_for_their_group() -> None:
    ours, base = container(), container_of("base")
    assert {name: ours[name] for name in base if name != "args"} == {n: base[n] for n in base if n != "args"}
    assert [flag for flag in ours["args"] if flag.partition("=")[0][2:].replace("-", "_") not in GROUP_FLAGS] == (
        base["args"]
    )
    pod, base_pod = template()["workerTemplate"]["spec"], of_kind("base", "Deployment")["spec"]["template"]["spec"]
    assert pod.keys() - base_pod.keys() == {"affinity"}
    shared = pod.keys() - {"affinity", "containers"}
    assert {name: pod[name] for name in shared} == {name: base_pod[name] for name in shared}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pods_are_valid_to_the_last_field(version: str) -> None:
    pods = template()["workerTemplate"]
    spec = {"selector": {"matchLabels": pods["metadata"]["labels"]}, "template": pods}
    validate({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "smoe"}, "spec": spec}, version)


def test_a_group_heals_itself() -> None:
    """The controller's default would end all pods of a group, and load all weights again, with each rank that ends."""
    assert template()["restartPolicy"] == "None"


def test_the_service_leads_to_leaders_and_the_group_is_closed_to_others() -> None:
    labels: dict[str, Any] = template()["workerTemplate"]["metadata"]["labels"]
    selector = of_kind(FOLDER, "Service")["spec"]["selector"]
    assert selector == {**labels, "leaderworkerset.sigs.k8s.io/worker-index": "0"}
    spec = of_kind(FOLDER, "NetworkPolicy")["spec"]
    assert spec["podSelector"]["matchLabels"] == labels and spec["policyTypes"] == ["Ingress"]
    to_all, to_group = spec["ingress"]
    assert to_all == {"ports": [{"port": container()["ports"][0]["name"]}]}
    assert to_group == {"from": [{"podSelector": {"matchLabels": labels}}]}


def test_no_service_gives_the_pods_variables_that_look_like_settings() -> None:
    assert template()["workerTemplate"]["spec"]["enableServiceLinks"] is False
    names = {item["metadata"]["name"] for item in built(FOLDER) if item["kind"] == "Service"}
    assert of_kind(FOLDER, "LeaderWorkerSet")["metadata"]["name"] not in names, "the controller's own Service has it"
