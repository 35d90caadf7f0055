"""The inputs that are kept: seeds, and every input that once failed (found-*)."""

from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def inputs_of(name: str) -> list[bytes]:
    """Return the inputs of a target, in the order of their file names."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir()) if path.name != "running"]
