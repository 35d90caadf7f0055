"""server/bench/unreachable.py: both clients of a server name a fault of TLS as such."""

import asyncio
import os
import ssl
from collections.abc import Callable

import pytest

from server.bench.http_client import Endpoint, HttpError
from server.bench.load_generator import first_model
from server.bench.unreachable import TRY_TLS, unreachable
from server.cli.client.api_client import ApiClient, ApiError, NoServerError
from tests.support import tls


def fault_of(url: str) -> str:
    """Return what the benchmarks' client says of a server."""
    try:
        asyncio.run(first_model(Endpoint.parse(url)))
    except HttpError as error:
        return str(error)
    return ""


def fault_on_terminal(url: str) -> str:
    """Return what the terminal's client says; a fault of TLS does not mean that there is no server."""
    try:
        ApiClient(url, None).get("/v1/models")
    except NoServerError:
        return ""
    except ApiError as error:
        return str(error)
    return ""


FAULTS = [fault_of, fault_on_terminal]


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1 << 16)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


async def _fault(scheme: str, context: ssl.SSLContext | None, fault: Callable[[str], str]) -> str:
    async with await asyncio.start_server(_refuse, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        return await asyncio.to_thread(fault, f"{scheme}://localhost:{port}")


def tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.CERTIFICATE, tls.KEY)
    return context


@pytest.mark.parametrize("fault", FAULTS)
def test_a_certificate_that_is_not_trusted_is_named_with_the_way_to_trust_it(
    fault: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    said = asyncio.run(_fault("https", tls_context(), fault))
    assert "certificate" in said and "self-signed" in said and "SSL_CERT_FILE" in said


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tls_server_that_is_called_without_tls_suggests_https(fault: Callable[[str], str]) -> None:
    assert asyncio.run(_fault("http", tls_context(), fault)).endswith(TRY_TLS)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_without_tls_that_is_called_with_it_suggests_http(fault: Callable[[str], str]) -> None:
    said = asyncio.run(_fault("https", None, fault))
    assert said.startswith("no TLS at ") and said.endswith("http://")


def test_a_certificate_of_another_host_asks_for_its_name() -> None:
    error = ssl.SSLCertVerificationError(1, "")
    error.verify_code, error.verify_message = 62, "Hostname mismatch, certificate is not valid for 'here'."
    assert unreachable(error, "here:1", "").endswith("for 'here'): call it by a name that is in it")
