"""Traces of a server process: they reach a collector, and a collector that is away harms nothing."""

import http.server
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from server.lifecycle.errors import StartError
from server.lifecycle.trace_export import start_tracing
from tests.support.servers.server_process import LONG, forked
from tests.test_layering import import_graph, top_level

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Run a collector of OTLP over HTTP; yield its URL, and path and body of what it gets."""
    received: list[tuple[str, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()
            thread.join()


def test_a_collector_has_the_trace_of_a_request_when_the_server_has_ended(checkpoint: Path) -> None:
    with collector() as (url, received), forked("count", checkpoint, otlp_traces_endpoint=url) as server:
        server.wait_ready()
        body, headers = {**LONG, "stream": False}, {"traceparent": TRACEPARENT}
        assert httpx.post(f"{server.url}/v1/completions", json=body, headers=headers).status_code == 200
        server.process.terminate()
        assert server.exit_code() == 0
    [(path, sent)] = received
    [resource] = ExportTraceServiceRequest.FromString(sent).resource_spans
    [scope] = resource.scope_spans
    assert path == "/v1/traces"
    assert {span.name for span in scope.spans} == {"queue", "prefill", "decode", "engine", "POST /v1/completions"}
    assert {span.trace_id.hex() for span in scope.spans} == {TRACEPARENT.split("-")[1]}
    names = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert names["service.name"] == "smoe"


def test_a_collector_that_is_away_fails_no_request_and_no_exit(checkpoint: Path) -> None:
    with collector() as (url, _):
        pass  # its port is closed
    with forked("count", checkpoint, otlp_traces_endpoint=url) as server:
        server.wait_ready()
        assert httpx.post(f"{server.url}/v1/completions", json={**LONG, "stream": False}).status_code == 200
        server.process.terminate()
        assert server.exit_code() == 0


def test_without_the_extra_the_start_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "server.observability.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # as if it were not installed
    with pytest.raises(StartError, match=r"pip install 'smoe\[otel\]'"):
        start_tracing("http://127.0.0.1:4318", "1", "m")


def test_without_an_endpoint_nothing_is_traced() -> None:
    assert start_tracing(None, "1", "m") is None


def test_one_module_imports_opentelemetry_so_that_it_costs_nothing_without_the_flag() -> None:
    users = [module for module, names in import_graph().items() if any(top_level(n) == "opentelemetry" for n in names)]
    assert users == ["server.observability.tracing"]
