"""Server side of an HTTP/1.1 connection: h11's, with what a server has to tolerate and a faster way to write chunks."""

import re

import h11
from h11._writers import ChunkedWriter

from server.http.limits.header_lines import HeaderLineLimit

_ABSOLUTE_FORM = re.compile(rb"https?://(?P<authority>[^/?]*)(?P<rest>.*)", re.IGNORECASE)
_AUTHORITY = re.compile(rb"(?:\[[0-9a-f:.]+\]|[\w.~%!$&'()*+,;=-]+)(?::[0-9]*)?", re.IGNORECASE)


class ServerConnection(h11.Connection):
    """Adds to h11: empty lines before a request are ignored, a target may be a whole URL, and heads have a limited
    number of lines.

    Sources: RFC 9112, sections 2.2 and 3.2.2.
    """

    def __init__(self, max_head_bytes: int) -> None:
        super().__init__(h11.SERVER, max_head_bytes)
        self._receive_buffer: HeaderLineLimit = HeaderLineLimit()

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return what the client sent next, like h11. Raises h11.RemoteProtocolError."""
        if self.their_state is h11.IDLE and self._receive_buffer.skip_empty_lines():
            return h11.NEED_DATA
        event = super().next_event()
        if type(event) is not h11.Request:
            return event
        try:
            return _in_origin_form(event)
        except h11.RemoteProtocolError:
            self._process_error(self.their_role)  # no more of this connection is read
            raise

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override]
        """Return the bytes of an event, like h11. Raises h11.LocalProtocolError.

        A chunk does not change h11's state, and streams have many: they are written past it.
        """
        if type(event) is h11.Data and event.data and type(self._writer) is ChunkedWriter:
            return b"%x\r\n%b\r\n" % (len(event.data), event.data)
        return super().send(event)


def _in_origin_form(request: h11.Request) -> h11.Request:
    """Return the request with the path and query of a target that is a whole URL, whose host replaces the Host header.

    Clients send such targets to the proxy that they are configured for. Raises h11.RemoteProtocolError if it names no
    host.
    """
    found = _ABSOLUTE_FORM.fullmatch(request.target)
    if found is None:
        return request
    if not _AUTHORITY.fullmatch(found["authority"]):
        raise h11.RemoteProtocolError("no host in the target")
    rest = found["rest"] if found["rest"].startswith(b"/") else b"/" + found["rest"]
    headers = [(name, value) for name, value in request.headers if name != b"host"]
    headers.append((b"host", found["authority"]))
    return h11.Request(method=request.method, target=rest, headers=headers, http_version=request.http_version)
