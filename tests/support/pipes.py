"""Pipes as the target of logs."""

import os


def written(reader: int, writer: int) -> list[str]:
    """Close the writing end and return all lines."""
    os.close(writer)
    with os.fdopen(reader, "rb", closefd=False) as stream:
        return stream.read().decode().splitlines()
