"""What can go wrong in the engine, as a small tree that its callers can tell apart."""


class EngineError(Exception):
    """The root. The message is one line, fit for the person who started the engine."""


class EngineConfigError(EngineError):
    """A setting that cannot work on this machine with this checkpoint; the message names the way out."""


class DeviceLostError(EngineError):
    """The device's context is poisoned: every later call on it fails, or computes what it likes. Only a new process
    gets a new one."""


def raise_if_device_lost(error: Exception) -> None:
    """Raises DeviceLostError for a fault of CUDA that stays, which is any but a lack of memory."""
    text = str(error)
    if ("CUDA error" in text or "Error [CUDA]" in text) and "out of memory" not in text:
        raise DeviceLostError(f"the GPU is lost: {text.splitlines()[0]}") from error


class GrammarError(EngineError):
    """A grammar that is none, that no text fulfils, or that takes more work than the limits allow.

    The message may quote the grammar.
    """


class RequestRejectedError(EngineError):
    """A request that this engine can never run: too long for the model or for the whole KV pool, for one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        """`param`: the field of the request that is at fault, where it is one."""
        super().__init__(message)
        self.param = param
