"""URLs of servers: for all commands that are clients of a server."""

from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}
UNIX = "unix:"
LIKE_UNIX = "unix:/run/smoe.sock"
IN_PATHS = "/%!$&'()*+,;=:@"  # besides letters, digits and -._~; a % is taken for one that encodes already


@dataclass(frozen=True)
class ServerUrl:
    """Parts of the URL of an OpenAI-style API."""

    host: str  # an IPv6 address has no brackets
    port: int
    root: str  # everything before /v1, as a request line may have it
    is_tls: bool
    uds: str = ""  # path of a Unix socket, which takes the place of host and port

    @property
    def authority(self) -> str:
        """Host and port, or the path of a Unix socket after "unix:"."""
        return UNIX + self.uds if self.uds else authority(self.host, self.port)


def authority(host: str, port: int) -> str:
    """Return host and port as a URL has them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_server_url(url: str) -> ServerUrl:
    """Parse "http://host:8000", with or without the scheme and "/v1" at its end, or "unix:/run/smoe.sock".

    Raises ValueError, in one line.
    """
    if url.startswith(UNIX):
        return _parse_unix(url)
    if "@" not in url and (url.startswith("/") or url.endswith(".sock")):
        raise ValueError(f"{url}: should be like http://127.0.0.1:8000, or {LIKE_UNIX}")
    shown = "the URL" if "@" in url else url  # what may have a password is not shown
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
    except ValueError:  # a bracket that is not closed
        raise ValueError(f"{shown}: should be like http://127.0.0.1:8000") from None
    if "@" in parts.netloc:
        raise ValueError("the URL should have no user and no password: --api-key KEY sends a key")
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError(f"{shown}: should be like http://127.0.0.1:8000")
    root = quote(parts.path, safe=IN_PATHS, errors="surrogateescape").rstrip("/").removesuffix("/v1")
    return ServerUrl(parts.hostname, _port(parts, shown), root, parts.scheme == "https")


def _parse_unix(url: str) -> ServerUrl:
    path = url.removeprefix(UNIX).removesuffix("/v1")
    path = path[2:] if path.startswith("///") else path  # unix:///run/smoe.sock
    if not path or "\0" in path or path.startswith("//"):
        raise ValueError(f"{url!r}: should be like {LIKE_UNIX}")
    return ServerUrl("localhost", DEFAULT_PORTS["http"], "", is_tls=False, uds=path)


def _port(parts: SplitResult, shown: str) -> int:
    try:
        port = DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    except ValueError:  # no number, or too large
        port = 0
    if port == 0:
        raise ValueError(f"{shown}: the port should be a number from 1 to 65535")
    return port
