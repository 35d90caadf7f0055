"""Errors of the engine, as a small tree that callers can tell apart."""


class EngineError(Exception):
    """Root of the tree. The message is one line for the person who started the engine."""


class EngineConfigError(EngineError):
    """A setting that cannot work on this machine with this checkpoint; the message names a setting that does."""


class GrammarError(EngineError):
    """An invalid, unsatisfiable or too expensive grammar. The message may quote the grammar."""


class FatalEngineError(EngineError):
    """The engine must end: its device is lost, or its bookkeeping is wrong. Its requests get no more output."""


class PeerClosedError(EngineError):
    """The API process closed its end of the socket, or died."""


class RequestRejectedError(EngineError):
    """A request that this engine can never run: for example, too long for the model or for the whole KV pool."""

    def __init__(self, message: str, param: str | None = None) -> None:
        """`param` names the request field at fault, if there is one."""
        super().__init__(message)
        self.param = param
