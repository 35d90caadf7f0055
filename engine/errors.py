"""What can go wrong in the engine, as a small tree that its callers can tell apart."""


class EngineError(Exception):
    """The root. The message is one line, fit for the person who started the engine."""


class EngineConfigError(EngineError):
    """A setting that cannot work on this machine with this checkpoint; the message names the way out."""


class GrammarError(EngineError):
    """A grammar that is none, that no text fulfils, or that takes more work than the limits allow.

    The message may quote the grammar.
    """


class FatalEngineError(EngineError):
    """The engine cannot go on: its device is lost, or its own book-keeping is wrong. Whoever steps it must end it; what
    it still holds gets no output any more."""


class PeerClosedError(EngineError):
    """The API process closed its end of the socket, or died."""


class RequestRejectedError(EngineError):
    """A request that this engine can never run: too long for the model or for the whole KV pool, for one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        """`param`: the field of the request that is at fault, where it is one."""
        super().__init__(message)
        self.param = param
