"""The listening socket. It is bound before anything is loaded, so that a port in use is reported at once."""

import errno
import ipaddress
import socket

BACKLOG = 4096


class ListenError(Exception):
    """The address cannot be bound. One line that names the flag to change."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on host:port; port 0 takes a free one. Raises ListenError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError):
        name, _, last = host.rpartition(":")
        hint = f"; for a port: --host {name.strip('[]')} --port {last}" if name and last.isdecimal() else ""
        raise ListenError(f"--host {host}: this name has no address{hint}") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # two sockets that are only bound can share a port, two that listen cannot
    except OSError as error:
        listener.close()
        raise ListenError(_explain(error, host, port)) from None
    return listener


def url_of(listener: socket.socket, *, scheme: str) -> str:
    """Return a URL for clients on this machine."""
    address, port = listener.getsockname()[:2]
    if ipaddress.ip_address(address).is_unspecified:
        address = "127.0.0.1"
    return f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Return True if only this machine can connect."""
    address = ipaddress.ip_address(listener.getsockname()[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None  # ::ffff:127.0.0.1
    return (mapped or address).is_loopback


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"--port {port}: already in use on {host}; --port 0 takes a free port"
    if error.errno == errno.EACCES:
        return f"--port {port}: ports below 1024 need privileges; choose a higher one"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host}: this machine does not have that address"
    return f"--host {host} --port {port}: {error.strerror}"
