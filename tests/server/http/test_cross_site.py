"""server/http/cross_site.py: DNS rebinding and cross-site requests, through ASGI around an app that answers."""

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp

from server.http.cross_site import LOOPBACK_HOSTS, accepted_hosts, split_authority
from server.http.middleware import with_middleware
from tests.support.servers.asgi_client import Client, Reply

HEALTH = ("/health", "/health/live", "/health/ready", "/ping")
OWN = [(b"host", b"localhost:8000")]
NAVIGATION = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


def app() -> ASGIApp:
    app = FastAPI(openapi_url=None)
    for path in ("/", "/echo", *HEALTH, "/metrics", "/metrics/load"):
        app.get(path)(lambda: "ok")
    app.post("/echo")(lambda: "ok")
    app.post("/v1/messages")(lambda: "ok")
    return app


def client(**settings: Any) -> Client:
    defaults = {
        "api_keys": (), "open_paths": frozenset(), "metrics_auth": False, "max_body_bytes": 1000,
        "allowed_origins": (), "accepted_hosts": LOOPBACK_HOSTS, "root_path": "", "on_http": lambda *count: None,
    }  # fmt: skip
    return Client(with_middleware(app(), **{**defaults, **settings}))


def to(host: str, path: str = "/echo", method: str = "POST", **settings: Any) -> int:
    return client(**settings).send(path, method=method, headers=[(b"host", host.encode())]).status


def page(method: str, headers: dict[str, str], path: str = "/echo", **settings: Any) -> Reply:
    """Send a browser's request to the server's own name."""
    sent = [*OWN, *((name.encode(), value.encode()) for name, value in headers.items())]
    return client(**settings).send(path, method=method, headers=sent)


@pytest.mark.parametrize("name", ["localhost", "LocalHost", "localhost.", "127.0.0.1", "[::1]"])
@pytest.mark.parametrize("port", ["", ":", ":8000", ":65535"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_loopback_server_answers_to_its_own_names(name: str, port: str, method: str) -> None:
    assert to(name + port, method=method) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8000", "localhost.evil.example", "evil.localhost", "localhost:x",
        "localhost:80:80", "user@localhost", "localhost@evil.example", "127.0.0.1.evil.example", "127.0.0.1, localhost",
        "127.0.0.2", "192.0.2.1", "[::2]", "::1", "[::1", "[localhost]", "localhost/", "localhost..", "*", "0.0.0.0",
        "", " ", "löcal",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_loopback_server_refuses_any_other_host(host: str, method: str) -> None:
    called = client()
    reply = called.send(method=method, headers=[(b"host", host.encode())])
    assert (reply.status, reply.error["code"]) == (403, "host_not_allowed")
    assert "--allowed-hosts" in reply.error["message"]
    assert reply.headers["x-request-id"]
    assert called.num_receives == 0


def test_two_hosts_are_refused_and_a_client_without_host_is_no_browser() -> None:
    assert client().send(headers=[(b"host", b"localhost"), (b"host", b"localhost")]).status == 403
    assert client().send(headers=[]).status == 200


@pytest.mark.parametrize("path", [*HEALTH, "/metrics", "/metrics/load"])
def test_probes_and_scrapers_may_use_any_address(path: str) -> None:
    for prefix in ("", "/api"):
        assert to("10.1.2.3:8000", prefix + path, "GET", root_path="/api") == 200
    assert to("[fd00::1]:8000", path, "GET") == 200


def test_a_foreign_name_reads_the_health_but_not_the_metrics() -> None:
    assert [to("a.example", path, "GET") for path in HEALTH] == [200] * len(HEALTH)
    assert to("a.example", "/metrics", "GET") == to("a.example", "/health/x", "GET") == 403


def test_the_host_is_checked_before_keys_and_origins() -> None:
    reply = client(api_keys=("k",), allowed_origins=("*",)).send(headers=[(b"host", b"evil.example")])
    assert reply.error["code"] == "host_not_allowed"


def test_without_accepted_hosts_any_host_is_answered() -> None:
    assert to("pod.example:80", accepted_hosts=None) == to("10.1.2.3", accepted_hosts=None) == 200


@pytest.mark.parametrize("host", ["evil:80:80", "user@evil", "[::1", ""])
@pytest.mark.parametrize("allowed", [".", "[]"])
def test_no_allowed_name_makes_a_malformed_host_acceptable(host: str, allowed: str) -> None:
    hosts = accepted_hosts((allowed,), ("127.0.0.1",), is_loopback=True)
    assert to(host, accepted_hosts=hosts) == 403


@pytest.mark.parametrize("spelling", ["FD00:0:0::1", "[fd00::0001]", "fd00::1"])
def test_each_spelling_of_an_ipv6_address_is_the_same_host(spelling: str) -> None:
    hosts = accepted_hosts((spelling,), (), is_loopback=True)
    assert to("[fd00::1]:8000", accepted_hosts=hosts) == to("[FD00:0::1]", accepted_hosts=hosts) == 200
    assert to("[0:0:0:0:0:0:0:1]:8000", accepted_hosts=hosts) == 200
    assert to("[fd00::2]:8000", accepted_hosts=hosts) == 403


@pytest.mark.parametrize(
    ("allowed", "own", "is_loopback", "expected"),
    [
        ((), ("127.0.0.1",), True, LOOPBACK_HOSTS),
        ((), ("Box", "127.0.1.1"), True, LOOPBACK_HOSTS | {"box", "127.0.1.1"}),
        (("A.example", "[::2]"), ("127.0.0.1",), True, LOOPBACK_HOSTS | {"a.example", "::2"}),
        ((), ("0.0.0.0",), False, None),
        (("a.example",), ("192.0.2.1",), False, LOOPBACK_HOSTS | {"a.example", "192.0.2.1"}),
        (("*",), ("127.0.0.1",), True, None),
        (("a.example", "*"), ("0.0.0.0",), False, None),
    ],
)
def test_the_hosts_follow_from_setting_and_address(
    allowed: tuple[str, ...], own: tuple[str, ...], is_loopback: bool, expected: frozenset[str] | None
) -> None:
    assert accepted_hosts(allowed, own, is_loopback=is_loopback) == expected


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example", "http://localhost:3000", "http://localhost", "http://127.0.0.1:8000", "null", "",
        "file://", "localhost:8000", "http://localhost:8000.evil.example", "http://localhost:8000, http://evil.example",
        "chrome-extension://abcdef",
    ],
)  # fmt: skip
@pytest.mark.parametrize("site", [{}, {"sec-fetch-site": "same-site"}, {"sec-fetch-site": "none"}])
def test_a_post_of_a_foreign_page_is_refused(origin: str, site: dict[str, str]) -> None:
    reply = page("POST", {"origin": origin, **site})
    assert (reply.status, reply.error["code"]) == (403, "origin_not_allowed")
    assert "--allowed-origins" in reply.error["message"]
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
@pytest.mark.parametrize("origin", [{}, {"origin": "https://evil.example"}])
def test_what_the_browser_marks_as_cross_site_is_refused(method: str, origin: dict[str, str]) -> None:
    for mode in ({}, {"sec-fetch-mode": "no-cors"}, {"sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}):
        assert page(method, {"sec-fetch-site": "cross-site", **mode, **origin}).status == 403


def test_a_link_on_another_site_opens_the_playground_but_a_form_sends_nothing() -> None:
    assert page("GET", NAVIGATION, "/").status == 200
    assert page("POST", {**NAVIGATION, "origin": "null"}).status == 403
    assert page("POST", NAVIGATION).status == 403


def test_an_allowed_origin_may_do_everything() -> None:
    for allowed in (("https://good.example",), ("*",)):
        for site in ({}, {"sec-fetch-site": "cross-site"}):
            reply = page("POST", {"origin": "https://good.example", **site}, allowed_origins=allowed)
            assert reply.status == 200
            assert reply.headers["access-control-allow-origin"] in ("https://good.example", "*")
    ask = {"origin": "https://good.example", "access-control-request-method": "POST", "sec-fetch-site": "cross-site"}
    assert page("OPTIONS", ask, allowed_origins=("https://good.example",)).status == 200
    assert page("POST", {"origin": "https://evil.example"}, allowed_origins=("https://good.example",)).status == 403


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("smoe.example", "https://smoe.example"),  # behind a proxy that ends TLS
        ("smoe.example:443", "https://smoe.example"),
        ("localhost", "http://localhost:80"),
    ],
)
def test_the_servers_own_page_may_post(host: str, origin: str) -> None:
    for site in ([], [(b"sec-fetch-site", b"same-origin")]):
        headers = [(b"host", host.encode()), (b"origin", origin.encode()), *site]
        assert client(accepted_hosts=None).send(headers=headers).status == 200


def test_the_servers_own_page_may_post_through_a_proxy_that_changes_the_host() -> None:
    assert page("POST", {"origin": "https://smoe.example", "sec-fetch-site": "same-origin"}).status == 200


def test_clients_that_are_no_browsers_send_neither_header_and_pass() -> None:
    assert page("POST", {}).status == page("GET", {}).status == 200
    assert page("POST", {"sec-fetch-site": "none"}).status == 200  # an address that a user has typed


def test_anthropics_clients_get_the_error_in_their_shape() -> None:
    error = page("POST", {"origin": "https://evil.example"}, "/v1/messages").error
    assert (set(error), error["type"]) == ({"type", "message"}, "permission_error")


@pytest.mark.parametrize(
    ("authority", "expected"),
    [("A.b:1", ("a.b", "1")), ("[::1]:2", ("::1", "2")), ("a", ("a", "")), ("a:b", ("", "")), ("[::1]a", ("", ""))],
)
def test_name_and_port_of_an_authority(authority: str, expected: tuple[str, str]) -> None:
    assert split_authority(authority) == expected
