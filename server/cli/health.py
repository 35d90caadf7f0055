"""`smoe health`: whether the server that the settings describe answers, for the health check of a container."""

import http.client
import queue
import ssl
import threading

from server.cli.client.unix_connection import UnixConnection
from server.settings.settings import Settings

TIMEOUT_S = 3.0  # for the whole answer; the image's health check has 5 s
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where a server on all addresses is asked
ALIVE, READY = "/health/live", "/health/ready"


def fault(settings: Settings, path: str) -> str:
    """Return in one line why the server does not answer `path` with 200; empty if it does.

    Nothing is sent that a stranger may not see: the certificate, which need not name this address, is not checked.
    """
    address, connection = _server_of(settings)
    answer = _in_time(connection, path)
    if isinstance(answer, Exception):
        return f"no answer from {address}: {getattr(answer, 'strerror', None) or answer}"
    return "" if answer == http.HTTPStatus.OK else f"{address}{path} answers {answer}"


def _server_of(settings: Settings) -> tuple[str, http.client.HTTPConnection]:
    """Return the server's address as errors have it, and a connection that is not open yet."""
    if settings.uds is not None:
        return f"unix:{settings.uds}", UnixConnection(str(settings.uds), TIMEOUT_S)
    host, port = LOOPBACK.get(settings.host, settings.host), settings.port
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if settings.ssl_certfile is not None and not settings.node_rank:  # the page of other hosts has no TLS
        return address, http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=_unchecked())
    return address, http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)


def _in_time(connection: http.client.HTTPConnection, path: str) -> int | Exception:
    """Return the status of the answer, or why there is none. The connection's own timeout is one of each read."""
    answers: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(_ask(connection, path)), daemon=True).start()
    try:
        return answers.get(timeout=TIMEOUT_S)
    except queue.Empty:
        return TimeoutError("timed out")


def _ask(connection: http.client.HTTPConnection, path: str) -> int | Exception:
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # the last one of a name that DNS cannot have
        return error
    finally:
        connection.close()


def _unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
