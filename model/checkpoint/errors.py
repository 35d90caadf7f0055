"""The error of invalid checkpoints."""


class CheckpointError(Exception):
    """The checkpoint cannot be served. The message is one line that names the fault and the file."""
