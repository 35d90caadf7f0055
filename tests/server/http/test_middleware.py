"""server/http/middleware.py around an app that echoes, called through ASGI."""

import json
from typing import Any

import pytest
from fastapi import FastAPI, Request

from server.api.app import create_app
from server.http.middleware import with_middleware
from tests.support.servers.asgi_client import Client, Reply
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.serving import saying, state_around

LIMIT = 1000


def echo_app() -> FastAPI:
    app = FastAPI(openapi_url=None)

    @app.post("/echo")
    async def echo(request: Request) -> dict[str, str]:
        return {"body": (await request.body()).decode(), "id": request.state.request_id}

    @app.get("/models/{model_id}")
    async def model(model_id: str) -> str:
        return model_id

    for path in ("/health", "/health/live", "/health/ready", "/ping", "/metrics", "/metrics/load", "/tokenize"):
        app.get(path)(lambda: "ok")
    return app


def client(counts: list[tuple[str, str, int]] | None = None, **settings: Any) -> Client:
    defaults = {
        "api_keys": (), "open_paths": frozenset(), "metrics_auth": False, "max_body_bytes": LIMIT,
        "allowed_origins": (), "root_path": "",
    }  # fmt: skip
    on_http = (lambda *count: counts.append(count)) if counts is not None else (lambda *count: None)
    return Client(with_middleware(echo_app(), on_http=on_http, **{**defaults, **settings}))


def bearer(value: str | bytes) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", value.encode() if isinstance(value, str) else value)]


def test_either_of_several_keys_opens() -> None:
    app = client(api_keys=("one", "schlüssel"))
    assert app.send(headers=bearer("Bearer one")).status == 200
    assert app.send(headers=bearer("Bearer schlüssel")).status == 200


@pytest.mark.parametrize(("version", "status"), [("1.0", 200), ("1.1", 200), ("2.0", 505), ("9.9", 505), ("0.9", 505)])
def test_only_http_1_is_answered(version: str, status: int) -> None:
    reply = client(api_keys=("k",)).send("/health", method="GET", http_version=version)
    assert reply.status == status
    if status == 505:
        assert (reply.error["code"], reply.headers["connection"]) == ("http_version_not_supported", "close")


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "Bearer  "])
def test_the_scheme_of_a_key_has_any_case(scheme: str) -> None:
    assert client(api_keys=("S3cret",)).send(headers=bearer(scheme + "S3cret")).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearer(""),
        bearer("Bearer"),
        bearer("Bearer "),
        bearer("Basic S3cret"),
        bearer("bearer s3cret"),
        bearer("S3cret"),
        bearer("Bearer s3cret"),
        bearer("Bearer S3cret "),
        bearer("BearerS3cret"),
        bearer("Bearer S3cretS3cret"),
        bearer("Bearer " + "x" * 1_000_000),
        bearer("Bearer schlüssel"),
        bearer(b"Bearer \xff\xfe"),
        bearer("Bearer S3cret") * 2,
        [(b"x-api-key", b"s3cret")],
        [(b"x-api-key", b"Bearer S3cret")],
        [(b"x-api-key", b"S3cret")] * 2,
        [(b"x-api-key", b"S3cret"), *bearer("Bearer none")],
    ],
)
def test_anything_but_the_exact_key_is_a_401(headers: list[tuple[bytes, bytes]]) -> None:
    app = client(api_keys=("S3cret",))
    reply = app.send(headers=headers, chunks=(b"x" * 10,))
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    assert (reply.error["type"], reply.error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert app.num_receives == 0  # not a byte of the body was read


def test_the_key_may_be_in_anthropics_header() -> None:
    assert client(api_keys=("S3cret",)).send(headers=[(b"x-api-key", b"S3cret")]).status == 200


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/ping", "/metrics", "/metrics/load"])
def test_health_and_metrics_are_open(path: str) -> None:
    assert client(api_keys=("k",)).send(path, method="GET").status == 200
    assert client(api_keys=("k",), root_path="/api").send("/api" + path, method="GET").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/tokenize", "/playground", "/playground/", "/docs",
        "/openapi.json", "/models/x", "//health", "/health/", "/Health", "/health/x",
        "/v1/../metrics", "/metrics/../tokenize", "/metrics/x", "/metrics/load/", "/ping%2f", "/api/health", "",
    ],
)  # fmt: skip
def test_everything_else_needs_the_key(path: str) -> None:
    assert client(api_keys=("k",)).send(path, method="GET").status == 401


@pytest.mark.parametrize("path", ["/metrics", "/metrics/load"])
def test_metrics_can_be_closed(path: str) -> None:
    app = client(api_keys=("k",), metrics_auth=True)
    assert app.send(path, method="GET").status == 401
    assert app.send(path, method="GET", headers=bearer("Bearer k")).status == 200


@pytest.mark.parametrize("chunk_size", [1, 7, LIMIT])
def test_a_body_at_the_limit_arrives_whole(chunk_size: int) -> None:
    text = "ab" * (LIMIT // 2)
    chunks = tuple(text[i : i + chunk_size].encode() for i in range(0, LIMIT, chunk_size))
    assert json.loads(client().send(chunks=chunks).body)["body"] == text


@pytest.mark.parametrize("chunks", [(b"x" * (LIMIT + 1),), (b"x",) * (LIMIT + 1), (b"x" * LIMIT, b"", b"x")])
@pytest.mark.parametrize("is_declared", [True, False])
def test_a_byte_too_many_is_a_413(chunks: tuple[bytes, ...], is_declared: bool) -> None:
    headers = [(b"content-length", str(sum(map(len, chunks))).encode())] if is_declared else []
    app = client()
    reply = app.send(chunks=chunks, headers=headers)
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    assert reply.headers["x-request-id"]
    assert app.num_receives == len(chunks)  # read to its end, so that the answer is not lost in a reset


@pytest.mark.parametrize(
    "headers",
    [[(b"content-length", b"10737418240")], [(b"content-length", b"1001"), (b"expect", b"100-continue")]],
)
def test_a_body_that_is_declared_far_too_long_is_refused_unread(headers: list[tuple[bytes, bytes]]) -> None:
    app = client()
    assert app.send(headers=headers).status == 413
    assert app.num_receives == 0


def test_an_endless_body_is_refused_before_its_end() -> None:
    app = client()
    assert app.send(chunks=(b"x" * LIMIT,) * 100).status == 413
    assert app.num_receives < 10


def test_the_app_never_gets_a_request_whose_client_disconnects_during_the_body() -> None:
    counts: list[tuple[str, str, int]] = []
    assert not client(counts).send(chunks=(b"x" * 10,), leaves=True).was_sent
    assert counts == []


def test_a_valid_request_id_is_kept() -> None:
    reply = client().send(headers=[(b"x-request-id", b"abc-123")])
    assert reply.headers["x-request-id"] == "abc-123"
    assert json.loads(reply.body)["id"] == "abc-123"


@pytest.mark.parametrize("sent", [b"", b"a b", b"x" * 129, "ü".encode(), b"a\x00b", b"a\tb"])
def test_any_other_request_id_is_replaced(sent: bytes) -> None:
    received = client().send(headers=[(b"x-request-id", sent)]).headers["x-request-id"]
    assert received.encode() != sent
    assert len(received) == 32


def test_no_browser_may_guess_the_type_of_a_response() -> None:
    app = client(api_keys=("k",), accepted_hosts=frozenset())
    key = bearer("Bearer k")
    replies = [
        app.send(headers=key),
        app.send("/health", method="GET"),
        app.send(),
        app.send("/nowhere", headers=key),
        app.send(method="GET", headers=key),
        app.send(headers=[*key, (b"content-length", b"10737418240")]),
        app.send(headers=[*key, (b"host", b"evil.example")]),
    ]
    assert [reply.status for reply in replies] == [200, 200, 401, 404, 405, 413, 403]
    assert {reply.headers["x-content-type-options"] for reply in replies} == {"nosniff"}


def test_requests_are_counted_by_route_and_unknown_ones_together() -> None:
    counts: list[tuple[str, str, int]] = []
    app = client(counts, api_keys=("k",))
    key = bearer("Bearer k")
    app.send("/models/a", method="GET", headers=key)
    app.send("/models/b", method="GET", headers=key)
    for number in range(3):
        app.send(f"/nowhere/{number}", method="GET", headers=key)
    app.send("/models/a", method="GET")
    assert counts == [
        *[("/models/{model_id}", "GET", 200)] * 2,
        *[("other", "GET", 404)] * 3,
        ("other", "GET", 401),
    ]


def test_a_path_is_found_with_and_without_the_proxys_prefix() -> None:
    app = client(root_path="/api")
    assert app.send("/echo").status == 200
    assert app.send("/api/echo").status == 200
    assert app.send("/other/echo").status == 404


def test_only_allowed_origins_get_cors_headers() -> None:
    app = client(api_keys=("k",), allowed_origins=("https://good.example",))

    def preflight(origin: bytes) -> Reply:
        headers = [(b"origin", origin), (b"access-control-request-method", b"POST")]
        return app.send(method="OPTIONS", headers=headers)

    good, bad = preflight(b"https://good.example"), preflight(b"https://bad.example")
    assert good.headers["access-control-allow-origin"] == "https://good.example"
    assert "access-control-allow-origin" not in bad.headers
    assert "access-control-allow-credentials" not in good.headers


def test_every_method_of_the_api_passes_a_preflight() -> None:
    routes = create_app(state_around(FakeEngine(saying("a")))).state.routes
    methods = {method for route in routes for method in getattr(route, "methods", ())}
    assert "DELETE" in methods
    app = client(allowed_origins=("https://good.example",))
    for method in methods - {"HEAD"}:  # which needs no preflight
        headers = [(b"origin", b"https://good.example"), (b"access-control-request-method", method.encode())]
        assert app.send(method="OPTIONS", headers=headers).status == 200, method


def test_the_headers_that_openais_and_anthropics_clients_send_pass_a_preflight() -> None:
    app = client(api_keys=("k",), allowed_origins=("https://good.example",))
    sent = "authorization,content-type,x-api-key,x-stainless-os,anthropic-dangerous-direct-browser-access"
    headers = [
        (b"origin", b"https://good.example"),
        (b"access-control-request-method", b"POST"),
        (b"access-control-request-headers", sent.encode()),
    ]
    reply = app.send(method="OPTIONS", headers=headers)
    assert reply.status == 200
    assert set(sent.split(",")) <= {name.strip() for name in reply.headers["access-control-allow-headers"].split(",")}


def test_a_browsers_script_may_read_what_was_ignored_and_repaired() -> None:
    app = client(allowed_origins=("https://good.example",))
    shown = app.send("/health", headers=[(b"origin", b"https://good.example")])
    exposed = shown.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "x-smoe-ignored-params", "x-smoe-repaired", "retry-after", "x-should-retry"} <= set(exposed)
