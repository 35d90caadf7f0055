"""The undocumented parts of uvicorn that server/http builds on. A failure here names what a new version has changed."""

import inspect
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import h11
import pytest
import uvicorn
from h11._readers import ContentLengthReader
from h11._writers import ChunkedWriter
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from tests.support.paths import ROOT

CHANGED = f"uvicorn {uvicorn.__version__} has changed: adapt server/http/, or lower the bound in pyproject.toml"

METHODS = {
    H11Protocol: (
        "connection_made",
        "connection_lost",
        "data_received",
        "eof_received",
        "pause_writing",
        "resume_writing",
        "on_response_complete",
        "send_400_response",
        "_unset_keepalive_if_required",
    ),
    uvicorn.Server: ("capture_signals", "serve", "startup", "shutdown"),
    uvicorn.Config: ("load",),
}
ATTRIBUTES = {
    "H11Protocol": ("config", "conn", "flow", "loop", "transport"),
    "FlowControl": ("read_paused",),
    "Server": ("should_exit", "started", "config"),
}


class FakeTransport:
    def get_extra_info(self, name: str) -> None:
        return None


def config(**settings: Any) -> uvicorn.Config:
    made = uvicorn.Config(lambda scope: None, http=H11Protocol, lifespan="off", ws="none", log_config=None, **settings)
    made.load()
    return made


def protocol(protocol_class: type[H11Protocol] = H11Protocol) -> H11Protocol:
    return protocol_class(config(), ServerState(), {}, _loop=object())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner, names in METHODS.items() for name in names], ids=str
)
def test_uvicorn_has_each_method_that_is_called_or_overridden(owner: type, name: str) -> None:
    assert callable(getattr(owner, name, None)), f"{CHANGED}: {owner.__name__}.{name} is gone"


def test_uvicorn_has_each_attribute_that_is_read_or_set() -> None:
    owners = {
        "H11Protocol": protocol(),
        "FlowControl": FlowControl(FakeTransport()),  # type: ignore[arg-type]
        "Server": uvicorn.Server(config()),
    }
    for owner, names in ATTRIBUTES.items():
        for name in names:
            assert hasattr(owners[owner], name), f"{CHANGED}: {owner}.{name} is gone"


def test_protocols_are_made_with_the_arguments_that_bounded_reads_pass_on() -> None:
    parameters = list(inspect.signature(H11Protocol.__init__).parameters)
    assert parameters == ["self", "config", "server_state", "app_state", "_loop"], CHANGED


def test_a_callable_can_be_given_as_the_http_protocol() -> None:
    assert config().http_protocol_class is H11Protocol, CHANGED


def test_the_400_of_an_invalid_request_is_sent_while_the_parsers_error_is_handled() -> None:
    errors: list[BaseException | None] = []

    class Rejecting(H11Protocol):
        def send_400_response(self, msg: str) -> None:
            errors.append(sys.exception())

    rejecting = protocol(Rejecting)
    rejecting.data_received(b"\x00\r\n\r\n")
    assert len(errors) == 1 and isinstance(errors[0], h11.RemoteProtocolError), CHANGED


def test_h11_counts_what_is_left_of_a_body() -> None:
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabcd")
    while parser.next_event() is not h11.NEED_DATA:
        pass
    assert (type(parser._reader), parser._reader._remaining) == (ContentLengthReader, 5), f"h11 {h11.__version__}"


def test_h11_has_a_writer_of_chunks_only_while_it_sends_a_body() -> None:
    sender = h11.Connection(h11.SERVER)
    sender.receive_data(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    sender.next_event()
    writers = [type(sender._writer)]
    for event in (h11.Response(status_code=200, headers=[]), h11.Data(data=b"a"), h11.EndOfMessage()):
        sender.send(event)
        writers.append(type(sender._writer))
    assert [writer is ChunkedWriter for writer in writers] == [False, True, True, False], f"h11 {h11.__version__}"


def test_the_version_of_uvicorn_has_an_upper_bound() -> None:
    dependencies = tomllib.loads(Path(ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [bound] = [found for name in dependencies if (found := re.fullmatch(r"uvicorn>=([\d.]+),<([\d.]+)", name))]
    lower, upper, installed = (
        tuple(map(int, version.split(".")[:2])) for version in (*bound.groups(), uvicorn.__version__)
    )
    assert lower <= installed < upper
