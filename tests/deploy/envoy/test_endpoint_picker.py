"""A real Envoy with deploy/envoy/envoy-epp.yaml, a picker of the test and two servers with fake engines."""

import contextlib
import itertools
import json
import os
import signal
from collections.abc import Iterator, Mapping

import httpx
import pytest

from tests.support.checkpoints.tokenizer_only import write_tokenizer
from tests.support.conditions import wait_until
from tests.support.hosts.endpoint_picker import DESTINATION, EndpointPicker, running_picker
from tests.support.hosts.envoy import REPLICA_HEADER, Config, configuration, running_envoy
from tests.support.ports import free_port
from tests.support.servers.server_process import LONG, Server, events, forked

SHORT = {"prompt": "a", "max_tokens": 1}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """Two servers by address; the first one holds its answers until it gets a signal."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_tokenizer(folder)
    with forked("gate", folder) as first, forked("count", folder) as second:
        for server in (first, second):
            server.wait_ready()
        yield {server.url.removeprefix("http://"): server for server in (first, second)}


def with_picker(config: Config, port: int) -> Config:
    [cluster] = [each for each in config["static_resources"]["clusters"] if each["name"] == "picker"]
    [locality] = cluster["load_assignment"]["endpoints"]
    locality["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"] = port
    return config


@contextlib.contextmanager
def fleet(addresses: list[str], picker: EndpointPicker) -> Iterator[httpx.Client]:
    config = with_picker(configuration("envoy-epp.yaml", addresses), picker.port)
    with running_envoy(config) as proxy, httpx.Client(base_url=proxy.url, timeout=60) as client:
        yield client


def test_each_request_goes_to_the_replica_that_the_picker_names_by_its_body(servers: dict[str, Server]) -> None:
    addresses = list(servers)

    def pick(headers: Mapping[str, str], body: bytes) -> str:
        if headers[":path"] == "/v1/models":
            return addresses[0]
        return str(json.loads(body)["user"])

    with running_picker(pick) as picker, fleet(addresses, picker) as client:
        second = addresses[1]
        for size in (1, 500_000):
            body = SHORT | {"user": second, "padding": "x" * size}
            answer = client.post("/v1/completions", json=body)
            assert (answer.status_code, answer.headers[REPLICA_HEADER]) == (200, second)
        assert [json.loads(sent)["padding"] for sent in picker.bodies] == ["x", "x" * 500_000]
        assert client.get("/v1/models").headers[REPLICA_HEADER] == addresses[0]


def test_an_address_that_is_no_replica_is_never_used_whoever_names_it(servers: dict[str, Server]) -> None:
    """Nothing listens there. The client's own header is overwritten by the picker's."""
    stranger = f"127.0.0.1:{free_port()}"
    _, second = servers
    with running_picker(lambda headers, body: stranger) as picker, fleet([second], picker) as client:
        answer = client.post("/v1/completions", json=SHORT, headers={DESTINATION: stranger})
        assert (answer.status_code, answer.headers[REPLICA_HEADER]) == (200, second)


def test_a_named_replica_that_does_not_answer_is_replaced_by_another(servers: dict[str, Server]) -> None:
    _, second = servers
    absent = f"127.0.0.1:{free_port()}"
    with running_picker(lambda headers, body: absent) as picker, fleet([absent, second], picker) as client:
        answers = [client.post("/v1/completions", json=SHORT) for _ in range(4)]
        assert {(answer.status_code, answer.headers[REPLICA_HEADER]) for answer in answers} == {(200, second)}


def test_a_stream_passes_event_by_event_and_the_load_that_it_causes_is_seen_at_once(servers: dict[str, Server]) -> None:
    """The first event arrives while its server holds the rest. Then a picker that takes the replica with fewer requests
    takes the other one."""
    addresses = list(servers)

    def load_of(address: str) -> float:
        lines = httpx.get(f"http://{address}/metrics/load").text.splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return float(values["vllm:num_requests_running"]) + float(values["vllm:num_requests_waiting"])

    turns = itertools.count()

    def pick(headers: Mapping[str, str], body: bytes) -> str:
        return addresses[0] if next(turns) == 0 else min(addresses, key=load_of)

    with running_picker(pick) as picker, fleet(addresses, picker) as client:
        wait_until(lambda: load_of(addresses[0]) == 0)
        with client.stream("POST", "/v1/completions", json=LONG) as first:
            lines = first.iter_lines()
            assert next(lines).startswith("data: ")
            assert client.post("/v1/completions", json=SHORT).headers[REPLICA_HEADER] == addresses[1]
            os.kill(servers[addresses[0]].engine_pid, signal.SIGUSR1)
            assert events(lines)[-1] == "[DONE]"


@pytest.mark.parametrize("size", [1, 500_000])
def test_without_a_picker_requests_go_to_any_replica(servers: dict[str, Server], size: int) -> None:
    _, second = servers
    picker = EndpointPicker(lambda headers, body: second, free_port())
    with fleet([second], picker) as client:
        own = {DESTINATION: f"127.0.0.1:{free_port()}"}  # no replica
        answer = client.post("/v1/completions", json=SHORT | {"padding": "x" * size}, headers=own)
        assert (answer.status_code, answer.headers[REPLICA_HEADER]) == (200, second)
        assert client.get("/v1/models").status_code == 200
