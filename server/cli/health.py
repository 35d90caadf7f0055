"""`smoe health`: whether the server that the settings describe answers, for the health check of a container."""

import http.client
import ssl

from server.settings.settings import Settings

TIMEOUT_S = 2.0
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where a server on all addresses is asked
ALIVE, READY = "/health/live", "/health/ready"


def fault(settings: Settings, path: str) -> str:
    """Return in one line why the server does not answer `path` with 200; empty if it does.

    Nothing is sent that a stranger may not see: the certificate, which need not name this address, is not checked.
    """
    host, port = LOOPBACK.get(settings.host, settings.host), settings.port
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    if settings.ssl_certfile is not None:
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=_unchecked())
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"no answer from {address}: {getattr(error, 'strerror', None) or error}"
    finally:
        connection.close()
    return "" if status == http.HTTPStatus.OK else f"{address}{path} answers {status}"


def _unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
