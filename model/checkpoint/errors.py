"""What can be wrong with a checkpoint."""


class CheckpointError(Exception):
    """A checkpoint that cannot be served. The message is one line: what is wrong, and where."""
