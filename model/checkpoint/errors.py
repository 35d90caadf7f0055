"""The error of invalid checkpoints."""


class CheckpointError(Exception):
    """The checkpoint cannot be served. The message is one line that names the fault and the file."""


class UncodableError(CheckpointError):
    """Lossless weights cannot hold a matrix, which the message names within its layer."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} has too many different exponents for --quantization lossless: serve without it")
