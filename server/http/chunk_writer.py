"""Write the chunks of a body past h11's state machine. A chunk does not change its state, and streams have many."""

import h11
from h11._writers import ChunkedWriter


class ServerConnection(h11.Connection):
    """Server side of a connection."""

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override]
        """Return the bytes of an event, like h11. Raises h11.LocalProtocolError."""
        if type(event) is h11.Data and event.data and type(self._writer) is ChunkedWriter:
            return b"%x\r\n%b\r\n" % (len(event.data), event.data)
        return super().send(event)
