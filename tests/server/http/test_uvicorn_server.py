"""server/http/uvicorn_server.py: running requests are counted, bad certificates are reported by their flags."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from server.http.certificate import CertificateError
from server.http.limits.read_limiter import ReadLimiter
from server.http.uvicorn_server import HttpServer, RequestTracker
from server.settings.sources import load_settings
from tests.support.tls import CERTIFICATE, EXPIRED_CERTIFICATE, EXPIRED_KEY, KEY

pytestmark = pytest.mark.anyio


async def test_waiting_ends_with_the_last_running_request_even_if_one_fails() -> None:
    ends = [asyncio.Event(), asyncio.Event()]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await ends[scope["number"]].wait()
        if scope["number"] == 1:
            raise ZeroDivisionError

    in_flight = RequestTracker(app)
    await in_flight.wait_idle(timeout_s=60)
    requests = [asyncio.create_task(in_flight({"number": number}, None, None)) for number in (0, 1)]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    idle = asyncio.create_task(in_flight.wait_idle(timeout_s=60))
    ends[0].set()
    await requests[0]
    assert not idle.done()
    ends[1].set()
    with pytest.raises(ZeroDivisionError):
        await requests[1]
    await idle


async def test_waiting_ends_with_the_timeout() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    in_flight = RequestTracker(app)
    request = asyncio.create_task(in_flight({}, None, None))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await in_flight.wait_idle(timeout_s=0.01)
    assert not request.done()
    request.cancel()


def server_with(**flags: str) -> HttpServer:
    settings = load_settings(flags)
    return HttpServer(RequestTracker(None), lambda: None, settings, read_limiter=ReadLimiter(), flush_s=1.0)  # type: ignore[arg-type,return-value]


async def test_files_that_are_no_certificate_are_named_by_their_flags(tmp_path: Path) -> None:
    path = tmp_path / "cert.pem"
    path.write_text("no certificate")
    with pytest.raises(CertificateError, match=r"^--ssl-certfile, --ssl-keyfile: "):
        server_with(ssl_certfile=str(path), ssl_keyfile=str(path))


async def test_a_certificate_that_clients_refuse_is_served_with_its_fault() -> None:
    server = server_with(ssl_certfile=str(EXPIRED_CERTIFICATE), ssl_keyfile=str(EXPIRED_KEY))
    assert server.certificate_fault and server.config.is_ssl
    assert not server_with(ssl_certfile=str(CERTIFICATE), ssl_keyfile=str(KEY)).certificate_fault


async def test_the_keep_alive_time_is_the_setting() -> None:
    assert server_with(keep_alive_timeout="61").config.timeout_keep_alive == 61
    assert load_settings({}).keep_alive_timeout > 60  # the usual time of load balancers
