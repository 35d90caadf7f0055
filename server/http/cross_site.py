"""Reject requests that a web page of another site sends through a user's browser.

Such a page reaches a server behind the user's firewall in two ways. With DNS rebinding its own name resolves to the
server's address: only the Host header shows the page's name. Without it, the page sends a request that needs no
permission of CORS. Browsers set Host, Origin and Sec-Fetch-Site themselves, and scripts cannot change them. Clients
that are no browsers send neither Origin nor Sec-Fetch-Site.

Sources: https://www.w3.org/TR/fetch-metadata/, https://fetch.spec.whatwg.org/#origin-header
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import host_not_allowed, origin_not_allowed
from server.http.error_response import send_error

ALL = "*"
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
DEFAULT_PORTS = {"http": "80", "https": "443"}
AUTHORITY = re.compile(r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[^\[\]:/@\s]+))(?::(?P<port>[0-9]*))?")
ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>.+)")


def accepted_hosts(allowed: Sequence[str], own: Iterable[str], *, is_loopback: bool) -> frozenset[str] | None:
    """Return the names and addresses that a Host header may contain, or None if all may.

    `allowed`: --allowed-hosts. `own`: names and addresses that the server listens on. `is_loopback`: only this machine
    can connect; then the check needs no setting.
    """
    if ALL in allowed or not (allowed or is_loopback):
        return None
    return LOOPBACK_HOSTS | {normalize_name(name.strip("[]")) for name in (*allowed, *own)}


class HostCheck:
    """Rejects requests whose Host header has a name that is not accepted.

    `health_paths` accept any Host: they tell nothing but the server's state. `metrics_paths` also accept every IP
    address, which scrapers send: DNS rebinding needs a name. A request without Host comes from a client of HTTP/1.0 and
    not from a browser.
    """

    def __init__(
        self, app: ASGIApp, hosts: frozenset[str], *, health_paths: frozenset[str], metrics_paths: frozenset[str]
    ) -> None:
        self._app = app
        self._hosts = hosts - {""}  # the name of a malformed Host
        self._health_paths = health_paths
        self._metrics_paths = metrics_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._accepts(Headers(scope=scope).getlist("host"), scope["path"]):
            await self._app(scope, receive, send)
        else:
            await send_error(scope, send, host_not_allowed())

    def _accepts(self, sent: list[str], path: str) -> bool:
        if not sent or path in self._health_paths:
            return True
        name, _ = split_authority(sent[0]) if len(sent) == 1 else ("", "")
        return name in self._hosts or (path in self._metrics_paths and is_address(name))


class OriginCheck:
    """Rejects requests of pages with another origin, unless it is one of `allowed_origins`.

    Safe methods are rejected only if the browser calls them cross-site and they are not a user's navigation: a link to
    the playground works on every page.
    """

    def __init__(self, app: ASGIApp, allowed_origins: Sequence[str]) -> None:
        self._app = app
        self._allowed = frozenset(allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._accepts(scope["method"], Headers(scope=scope)):
            await self._app(scope, receive, send)
        else:
            await send_error(scope, send, origin_not_allowed())

    def _accepts(self, method: str, headers: Headers) -> bool:
        origin = ", ".join(headers.getlist("origin")) if "origin" in headers else None
        if ALL in self._allowed or origin in self._allowed:
            return True
        sites = headers.getlist("sec-fetch-site")
        if "cross-site" in sites:
            return _is_navigation(method, headers)
        if method in SAFE_METHODS or origin is None or sites == ["same-origin"]:  # even if a proxy has changed Host
            return True
        return is_same_host(origin, headers.get("host", ""))


def is_same_host(origin: str, host: str) -> bool:
    """Return True if a page of `origin` was loaded from `host`. The scheme may differ: a proxy may end TLS."""
    match = ORIGIN.fullmatch(origin.lower())
    if match is None:
        return False
    name, port = split_authority(match["authority"])
    host_name, host_port = split_authority(host)
    default = DEFAULT_PORTS.get(match["scheme"], "")
    return name != "" and (name, port or default) == (host_name, host_port or default)


def split_authority(authority: str) -> tuple[str, str]:
    """Return name and port of NAME:PORT: the normalized name, "" if malformed; the port "" if absent."""
    match = AUTHORITY.fullmatch(authority.lower())
    if match is None:
        return "", ""
    return normalize_name(match["ipv6"] or match["name"]), match["port"] or ""


def normalize_name(name: str) -> str:
    """Return a host name in lower case without a dot at its end, or an IPv6 address in its shortest form."""
    name = name.lower().removesuffix(".")
    return ipaddress.IPv6Address(name).compressed if ":" in name and is_address(name) else name


def is_address(name: str) -> bool:
    """Return True if the name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_navigation(method: str, headers: Headers) -> bool:
    """Return True if a user follows a link into a tab of its own, not a frame."""
    is_document = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return method in ("GET", "HEAD") and is_document
