"""A real Envoy with the files of deploy/envoy/ in front of two servers with fake engines, of which one ends."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.checkpoints.tokenizer_only import write_tokenizer
from tests.support.conditions import wait_until
from tests.support.hosts.envoy import (
    REPLICA_HEADER,
    Envoy,
    configuration,
    running_envoy,
    without_health_checks,
    write_replicas,
)
from tests.support.servers.server_process import LONG, Server, events, forked

NUM_REQUESTS = 30
MAX_STREAMS = 64  # until each replica has one: fails by chance once in 2^63 runs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer and an empty config: the fake engine reads no weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_tokenizer(folder)
    return folder


@contextlib.contextmanager
def replicas(checkpoint: Path, first_mode: str, second_mode: str) -> Iterator[dict[str, Server]]:
    """Start two servers; yield them by address. The modes are those of fake_engine_process.py."""
    modes = (first_mode, second_mode)
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(forked(mode, checkpoint, shutdown_timeout="600")) for mode in modes)
        for server in (first, second):
            server.wait_ready()
        yield {server.url.removeprefix("http://"): server for server in (first, second)}


def session(number: int) -> dict[str, str]:
    return {"x-session-id": f"session {number}"}


def statuses(client: httpx.Client) -> set[tuple[int, str]]:
    """Begin a stream in each session; return the different statuses, with the replicas that answered."""
    found = set()
    for number in range(NUM_REQUESTS):
        with client.stream("POST", "/v1/completions", json=LONG, headers=session(number)) as answer:
            found.add((answer.status_code, answer.headers.get(REPLICA_HEADER, "")))
    return found


def open_stream(stack: contextlib.ExitStack, client: httpx.Client, address: str) -> Iterator[str]:
    """Open streams until the replica has one; return the lines behind the first event of that one."""
    for number in range(MAX_STREAMS):
        stream = stack.enter_context(client.stream("POST", "/v1/completions", json=LONG, headers=session(number)))
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        if stream.headers[REPLICA_HEADER] == address:
            return lines
    raise AssertionError("one replica gets all sessions")


def client_of(proxy: Envoy) -> httpx.Client:
    return httpx.Client(base_url=proxy.url, timeout=60)


def open_gate(server: Server) -> None:
    """Let a server in mode "gate" finish what it holds and what comes."""
    os.kill(server.engine_pid, signal.SIGUSR1)


def test_no_new_request_fails_after_a_replica_was_killed(checkpoint: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(replicas(checkpoint, "count", "count"))
        killed, other = servers
        config = without_health_checks(configuration("envoy.yaml", list(servers)))
        proxy = stack.enter_context(running_envoy(config))
        client = stack.enter_context(client_of(proxy))
        assert statuses(client) == {(200, killed), (200, other)}
        servers[killed].process.kill()
        servers[killed].process.wait()
        wait_until(lambda: proxy.num_connections(killed) == 0)
        assert statuses(client) == {(200, other)}
        assert proxy.counter("upstream_rq_retry_success") > 0


def test_a_replica_that_drains_finishes_its_streams_and_new_requests_go_to_the_other(checkpoint: Path) -> None:
    """Beside the Envoy as it is shipped runs one that checks no health, whose sessions all meet the drain's 503."""
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(replicas(checkpoint, "gate", "count"))
        draining, other = servers
        config = configuration("envoy.yaml", list(servers))
        proxy = stack.enter_context(running_envoy(config))
        unchecked = stack.enter_context(
            running_envoy(without_health_checks(configuration("envoy.yaml", list(servers))))
        )
        client, retried = (stack.enter_context(client_of(each)) for each in (proxy, unchecked))
        lines = open_stream(stack, client, draining)
        servers[draining].process.send_signal(signal.SIGTERM)
        servers[draining].wait_health(503)
        assert statuses(client) == statuses(retried) == {(200, other)}
        body = {"prompt": "a", "max_tokens": 1, "padding": "x" * 1_000_000}  # just below --max-body-bytes
        long = [retried.post("/v1/completions", json=body, headers=session(number)) for number in range(8)]
        assert {(answer.status_code, answer.headers[REPLICA_HEADER]) for answer in long} == {(200, other)}
        assert unchecked.counter("upstream_rq_retry_success") > 0
        wait_until(lambda: proxy.healthy() == {other})
        open_gate(servers[draining])
        assert events(lines)[-1] == "[DONE]"
        assert servers[draining].exit_code() == 0


def test_replicas_come_and_go_with_the_file_and_no_stream_is_cut(checkpoint: Path, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(replicas(checkpoint, "gate", "count"))
        removed, other = servers
        listed = tmp_path / "replicas.yaml"
        config = configuration("envoy-eds.yaml", list(servers), listed)
        proxy = stack.enter_context(running_envoy(config))
        client = stack.enter_context(client_of(proxy))
        lines = open_stream(stack, client, removed)
        write_replicas(listed, [other])
        wait_until(lambda: statuses(client) == {(200, other)})
        open_gate(servers[removed])
        assert events(lines)[-1] == "[DONE]"
        write_replicas(listed, [removed, other])
        wait_until(lambda: statuses(client) == {(200, removed), (200, other)})


def test_a_fleet_without_a_replica_answers_503_and_metrics_are_of_no_replica() -> None:
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))  # its checks are never answered
        config = configuration("envoy.yaml", [f"127.0.0.1:{silent.getsockname()[1]}"])
        client = stack.enter_context(client_of(stack.enter_context(running_envoy(config))))
        assert statuses(client) == {(503, "")}
        assert client.get("/metrics").status_code == client.get("/metrics/load").status_code == 404
