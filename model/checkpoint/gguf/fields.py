"""Typed access to the fields of a GGUF header. A wrong type or range raises a CheckpointError with file, key, value."""

from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf.file import GgufFile, Value
from model.checkpoint.json_files import printable


class GgufFields:
    """The fields of one file. `prefix` precedes key names: "llama." for those of the network."""

    def __init__(self, file: GgufFile, prefix: str = "") -> None:
        self._file = file
        self._prefix = prefix

    def error(self, message: str) -> CheckpointError:
        """Return a CheckpointError whose message starts with the file."""
        return CheckpointError(f"{self._file.path}: {message}")

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._file.fields

    def get(self, name: str) -> Value | None:
        """Return the unchecked value; None if the key is absent."""
        return self._file.fields.get(self._prefix + name)

    def integer(self, name: str, at_least: int, at_most: int, default: int | None = None) -> int:
        """Return an integer in at_least .. at_most; without a default the key must be present."""
        value = self._required(name, default)
        if type(value) is not int or not at_least <= value <= at_most:
            raise self._wrong(name, f"an integer from {at_least} to {at_most}")
        return value

    def positive_float(self, name: str, at_most: float, default: float | None = None) -> float:
        """Return a number above 0 and at most `at_most`."""
        value = self._required(name, default)
        if type(value) not in (int, float) or not 0 < value <= at_most:  # type: ignore[operator]
            raise self._wrong(name, f"a number above 0 and at most {at_most:g}")
        return float(value)  # type: ignore[arg-type]

    def text(self, name: str) -> str | None:
        """Return a text; None if the key is absent."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name, "a text")
        return value

    def flag(self, name: str) -> bool | None:
        """Return a boolean; None if the key is absent."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def texts(self, name: str) -> list[str] | None:
        """Return an array of texts; None if the key is absent."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, "an array of texts")
        return value  # type: ignore[return-value]

    def numbers(self, name: str) -> list[float] | None:
        """Return an array of numbers; None if the key is absent."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(item) in (int, float) for item in value):
            raise self._wrong(name, "an array of numbers")
        return value  # type: ignore[return-value]

    def _required(self, name: str, default: float | None) -> Value:
        value = self.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.error(f"the field {self._prefix}{name} is missing")
        return value

    def _wrong(self, name: str, expected: str) -> CheckpointError:
        return self.error(f"{self._prefix}{name} is {printable(self.get(name))}, not {expected}")
