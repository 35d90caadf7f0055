"""deploy/k8s/: every folder builds, its objects are valid, and they fit each other, the image and the server."""

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from server.engine_client.watchdog import DEFAULT_TIMEOUTS
from server.observability.load import Load, render_load
from server.settings.settings import PREFIX, Settings, flag_name
from server.settings.sources import load_settings
from tests.deploy.kubernetes.custom_resources import SCHEMAS
from tests.support.paths import ROOT

pytestmark = pytest.mark.kustomize
FOLDER = ROOT / "deploy" / "k8s"
FOLDERS = sorted(str(path.parent.relative_to(FOLDER)) for path in FOLDER.rglob("kustomization.yaml"))
DEPLOYMENTS = [folder for folder in FOLDERS if folder != "overlays/tp"]  # test_several_hosts.py has the other one
VERSIONS = ("1.32", kubernetes_validate.latest_version())  # preStop's sleep is on by default from 1.30 on
DOCKERFILE = (ROOT / "Dockerfile").read_text()
Object = dict[str, Any]


@cache
def built(folder: str) -> list[Object]:
    """Return the objects that `kustomize build` prints."""
    result = subprocess.run(["kustomize", "build", FOLDER / folder], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "deprecated" not in result.stderr
    return list(yaml.safe_load_all(result.stdout))


def of_kind(folder: str, kind: str) -> Object:
    [found] = [item for item in built(folder) if item["kind"] == kind]
    return found


def validate(item: Object, version: str) -> None:
    """Raise an error if the object does not have the schema of its kind, in this version of Kubernetes."""
    if item["kind"] in SCHEMAS:
        jsonschema.validate(item, SCHEMAS[item["kind"]])
    else:
        kubernetes_validate.validate(item, version, strict=True)


def pod_of(folder: str) -> Object:
    """Return the pod template of the Deployment."""
    template: Object = of_kind(folder, "Deployment")["spec"]["template"]
    return template


def container_of(folder: str) -> Object:
    [container] = pod_of(folder)["spec"]["containers"]
    found: Object = container
    return found


def flags_of(folder: str) -> dict[str, str]:
    """Return the flags of the server's arguments, by the name of their setting."""
    flags = [argument.removeprefix("--").split("=") for argument in container_of(folder)["args"][2:]]
    return {name.replace("-", "_"): value for name, value in flags}


def selects(labels: dict[str, str], folder: str) -> bool:
    return bool(labels) and labels.items() <= pod_of(folder)["metadata"]["labels"].items()


def router_values() -> Object:
    values: Object = yaml.safe_load((FOLDER / "overlays/gateway/router-values.yaml").read_text())["router"]
    return values


def test_there_are_a_base_and_three_overlays() -> None:
    assert FOLDERS == ["base", "overlays/gateway", "overlays/keda", "overlays/tp"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_object_is_valid_to_the_last_field(folder: str, version: str) -> None:
    for item in built(folder):
        validate(item, version)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_validation_sees_an_unknown_field_in_every_kind(folder: str) -> None:
    for item in built(folder):
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            validate({**item, "spec": {**item["spec"], "replica": 1}}, VERSIONS[0])


@pytest.mark.parametrize("folder", DEPLOYMENTS)
def test_every_selector_selects_the_pods(folder: str) -> None:
    assert selects(of_kind(folder, "Deployment")["spec"]["selector"]["matchLabels"], folder)
    assert selects(of_kind(folder, "Service")["spec"]["selector"], folder)
    assert selects(of_kind(folder, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"], folder)
    for constraint in pod_of(folder)["spec"]["topologySpreadConstraints"]:
        assert selects(constraint["labelSelector"]["matchLabels"], folder)


@pytest.mark.parametrize("folder", DEPLOYMENTS)
def test_service_and_probes_use_the_port_that_the_image_listens_on(folder: str) -> None:
    [port] = container_of(folder)["ports"]
    exposed = int(re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)[0])
    assert port["containerPort"] == exposed
    assert f"SMOE_PORT={exposed}" in DOCKERFILE
    assert [service["targetPort"] for service in of_kind(folder, "Service")["spec"]["ports"]] == [port["name"]]
    probes = {
        name: container_of(folder)[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert probes["startupProbe"]["path"] == probes["readinessProbe"]["path"] == "/health/ready"
    assert probes["livenessProbe"]["path"] == "/health/live"


@pytest.mark.parametrize("folder", DEPLOYMENTS)
def test_every_flag_and_variable_is_a_setting_with_a_valid_value(folder: str) -> None:
    command, model, *flags = container_of(folder)["args"]
    assert (command, model) == ("serve", "/model")
    assert len(flags_of(folder)) == len(flags)
    assert {f"--{name.replace('_', '-')}" for name in flags_of(folder)} <= set(map(flag_name, Settings.model_fields))
    settings = load_settings(flags_of(folder))
    assert settings.shutdown_timeout == float(flags_of(folder)["shutdown_timeout"])
    variables = [variable["name"] for variable in container_of(folder)["env"]]
    assert {name.removeprefix(PREFIX).lower() for name in variables} <= {*Settings.model_fields, "api_key"}


@pytest.mark.parametrize("folder", DEPLOYMENTS)
def test_a_pod_that_ends_has_time_to_finish_its_streams(folder: str) -> None:
    pause_s = container_of(folder)["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = float(flags_of(folder)["shutdown_timeout"])
    assert pod_of(folder)["spec"]["terminationGracePeriodSeconds"] >= pause_s + drain_s + 10
    readiness = container_of(folder)["readinessProbe"]
    assert pause_s > readiness["failureThreshold"] * (readiness["periodSeconds"] + readiness["timeoutSeconds"])


@pytest.mark.parametrize("folder", DEPLOYMENTS)
def test_the_server_replaces_an_engine_that_hangs_before_kubernetes_ends_the_pod(folder: str) -> None:
    liveness = container_of(folder)["livenessProbe"]
    assert liveness["failureThreshold"] * liveness["periodSeconds"] > DEFAULT_TIMEOUTS.kill_after_s


@pytest.mark.parametrize("folder", DEPLOYMENTS)
def test_the_container_is_the_dockerfiles_image_as_its_user_without_rights(folder: str) -> None:
    container, pod = container_of(folder), pod_of(folder)["spec"]
    assert re.fullmatch(r"smoe:\d+\.\d+\.\d+", container["image"])
    assert 'ENTRYPOINT ["/opt/smoe/bin/smoe"]' in DOCKERFILE  # so the arguments begin with a command
    user, group = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)[0]
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (int(user), int(group))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False


@pytest.mark.parametrize("folder", DEPLOYMENTS)
def test_volumes_are_mounted_the_model_read_only_and_tmp_to_write(folder: str) -> None:
    volumes = {volume["name"]: volume for volume in pod_of(folder)["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container_of(folder)["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    assert mounts["/model"]["readOnly"] is True
    for path in ("/tmp", "/home/smoe/.triton"):  # Triton's, of the image's user
        assert "emptyDir" in volumes[mounts[path]["name"]]


@pytest.mark.parametrize("folder", DEPLOYMENTS)
def test_kubernetes_sets_no_variable_that_the_server_would_read_as_a_setting(folder: str) -> None:
    assert of_kind(folder, "Service")["metadata"]["name"] == "smoe"  # which would give SMOE_PORT
    assert pod_of(folder)["spec"]["enableServiceLinks"] is False


def test_the_image_has_the_version_of_the_project() -> None:
    version = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
    assert container_of("base")["image"] == f"smoe:{version}"


def test_the_endpoint_picker_reads_the_load_of_the_pods_that_the_route_leads_to() -> None:
    folder, values = "overlays/gateway", router_values()
    assert selects(values["modelServers"]["matchLabels"], folder)
    assert selects({"llm-d.ai/engine-type": values["modelServers"]["type"]}, folder)
    assert values["modelServers"]["targetPorts"] == [{"number": container_of(folder)["ports"][0]["containerPort"]}]
    assert values["epp"]["metricsDataSource"] == {"scheme": "http", "path": "/metrics/load"}
    install = re.findall(r"helm install (\S+) ", (FOLDER / folder / "kustomization.yaml").read_text())
    [rule] = of_kind(folder, "HTTPRoute")["spec"]["rules"]
    assert [backend["name"] for backend in rule["backendRefs"]] == install  # the chart names the pool as its release
    assert rule["timeouts"]["request"] == "0s"


def test_the_autoscaler_reads_gauges_that_the_pods_have_and_scales_the_deployment() -> None:
    folder = "overlays/keda"
    spec = of_kind(folder, "ScaledObject")["spec"]
    assert spec["scaleTargetRef"]["name"] == of_kind(folder, "Deployment")["metadata"]["name"]
    assert "replicas" not in of_kind(folder, "Deployment")["spec"]  # else each apply would undo the scaling
    service, port = of_kind(folder, "Service")["metadata"]["name"], container_of(folder)["ports"][0]["containerPort"]
    text = render_load(Load(1, 1, 0.5, 16, 64)).decode()
    for trigger in spec["triggers"]:
        assert trigger["metadata"]["url"] == f"http://{service}.default.svc:{port}/metrics/load"
        assert re.search(rf"^{trigger['metadata']['valueLocation']} 1$", text, re.MULTILINE)
    formula = spec["advanced"]["scalingModifiers"]["formula"]
    assert set(re.findall(r"\w+", formula)) == {trigger["name"] for trigger in spec["triggers"]}


def test_the_load_of_pods_is_open_without_a_key_in_the_manifests() -> None:
    assert all("metrics_auth" not in flags_of(folder) for folder in DEPLOYMENTS)


def test_no_file_is_left_out_of_its_kustomization() -> None:
    for path in FOLDER.rglob("kustomization.yaml"):
        named = set(yaml.safe_load(path.read_text())["resources"])
        files = {file.name for file in Path(path.parent).glob("*.yaml")} - {path.name, "router-values.yaml"}
        assert files <= named
