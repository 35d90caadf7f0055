"""The listening socket. It is bound before anything is loaded, so that a port in use is reported at once."""

import errno
import ipaddress
import os
import socket
import stat
from pathlib import Path

from server.settings.settings import Settings

BACKLOG = 4096
MAX_UDS_BYTES = 107  # of a path: the system's struct sockaddr_un has 108, with the NUL at the end
UDS_MODE = 0o666  # a client needs write permission; the folder's permissions say who gets that far


class ListenError(Exception):
    """The address cannot be bound. One line that names the flag to change."""


def listen_as(settings: Settings, inherited: socket.socket | None = None) -> socket.socket:
    """Return `inherited`, or else a socket that listens where the settings say. Raises ListenError."""
    if settings.ssl_certfile is not None and (is_unix(inherited) if inherited else settings.uds):
        raise ListenError("--ssl-certfile: a Unix socket has no TLS; give the certificate to the proxy before it")
    if inherited is not None:
        return inherited
    return listen(settings.host, settings.port) if settings.uds is None else listen_unix(settings.uds)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on host:port; port 0 takes a free one. Raises ListenError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError):
        name, _, last = host.rpartition(":")
        hint = f"; for a port: --host {name.strip('[]')} --port {last}" if name and last.isdecimal() else ""
        raise ListenError(f"--host {host}: this name has no address{hint or _uds_hint(host)}") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # two sockets that are only bound can share a port, two that listen cannot
    except OSError as error:
        listener.close()
        raise ListenError(_explain(error, host, port)) from None
    return listener


def listen_unix(path: Path) -> socket.socket:
    """Return a Unix socket that listens at `path`, for all users whom its folder lets in. Raises ListenError.

    A socket that another server left there is replaced. This one is left, too: a later process may have taken over.
    """
    try:
        if len(os.fsencode(path)) > MAX_UDS_BYTES:
            raise ListenError(f"--uds {path}: should have at most {MAX_UDS_BYTES} bytes")
        _remove_if_left(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            path.chmod(UDS_MODE)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ListenError(f"--uds {path}: {error.strerror or error}") from None
    except ValueError:  # NUL in the path
        raise ListenError(f"--uds {str(path)!r}: should be a path") from None
    return listener


def _remove_if_left(path: Path) -> None:
    """Remove a socket on which no process listens. Raises ListenError for anything else that exists, and OSError."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"--uds {path}: exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # its queue is full
            pass
    raise ListenError(f"--uds {path}: another process listens on it")


def is_unix(listener: socket.socket) -> bool:
    """Return True for a Unix socket, which no other machine can reach, nor a web page but through a proxy."""
    return listener.family == socket.AF_UNIX


def url_of(listener: socket.socket, *, scheme: str) -> str:
    """Return a URL for clients on this machine: of a Unix socket, "unix:" and its path."""
    if is_unix(listener):
        return f"unix:{listener.getsockname()}"
    address, port = listener.getsockname()[:2]
    if ipaddress.ip_address(address).is_unspecified:
        address = "127.0.0.1"
    return f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"


def names_of(listener: socket.socket) -> tuple[str, ...]:
    """Return the address that the Host of requests may have."""
    return () if is_unix(listener) else (listener.getsockname()[0],)


def is_loopback(listener: socket.socket) -> bool:
    """Return True if only programs on this machine can connect, browsers among them."""
    if is_unix(listener):
        return False
    address = ipaddress.ip_address(listener.getsockname()[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None  # ::ffff:127.0.0.1
    return (mapped or address).is_loopback


def _uds_hint(host: str) -> str:
    path = host.removeprefix("unix:")
    return f"; for a Unix socket: --uds {path}" if "/" in path or path.endswith(".sock") else ""


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"--port {port}: already in use on {host}; --port 0 takes a free port"
    if error.errno == errno.EACCES:
        return f"--port {port}: ports below 1024 need privileges; choose a higher one"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host}: this machine does not have that address"
    return f"--host {host} --port {port}: {error.strerror}"
