"""Typed access to a parsed JSON object. A wrong type or range raises a CheckpointError with file, key and value."""

from pathlib import Path
from typing import Any

from model.checkpoint.errors import CheckpointError
from model.checkpoint.json_files import printable


class JsonFields:
    """The fields of one JSON object in `file`."""

    def __init__(self, file: Path, values: dict[str, Any], prefix: str = "") -> None:
        """Wrap `values`. `prefix` precedes key names in messages: "rope_parameters." for a nested object."""
        self.file = file
        self._values = values
        self._prefix = prefix

    def error(self, message: str) -> CheckpointError:
        """Return a CheckpointError whose message starts with the file."""
        return CheckpointError(f"{self.file}: {message}")

    def get(self, name: str, default: Any = None) -> Any:
        """Return the unchecked value; `default` if the key is absent."""
        return self._values.get(name, default)

    def names(self) -> list[str]:
        """Return the keys."""
        return list(self._values)

    def described(self, name: str) -> str:
        """Return "key is value", with the full key."""
        return f"{self._prefix}{name} is {printable(self.get(name))}"

    def as_dict(self) -> dict[str, Any]:
        """Return the unchecked values by key."""
        return self._values

    def section(self, name: str) -> "JsonFields | None":
        """Return a nested object; None if the key is absent or null."""
        values = self.get(name)
        if values is None:
            return None
        if not isinstance(values, dict):
            raise self._wrong(name, "an object")
        return JsonFields(self.file, values, f"{self._prefix}{name}.")

    def positive(self, name: str, at_most: int) -> int:
        """Return an integer in 1 .. at_most."""
        value = self._required(name)
        if type(value) is not int or not 1 <= value <= at_most:
            raise self._wrong(name, f"an integer from 1 to {at_most}")
        return value

    def positive_float(self, name: str, at_most: float) -> float:
        """Return a number above 0 and at most `at_most`; integers are accepted."""
        value = self._required(name)
        if type(value) not in (int, float) or not 0 < value <= at_most:
            raise self._wrong(name, f"a number above 0 and at most {at_most:g}")
        return float(value)

    def flag(self, name: str) -> bool:
        """Return a boolean; False if the key is absent or null."""
        value = self.get(name)
        if value is not None and type(value) is not bool:
            raise self._wrong(name, "true or false")
        return bool(value)

    def token_id(self, name: str, vocab_size: int) -> int:
        """Return one token id, below vocab_size."""
        ids = self.token_ids(name, vocab_size)
        if len(ids) != 1:
            raise self._wrong(name, "one token id")
        return ids[0]

    def token_ids(self, name: str, vocab_size: int) -> list[int]:
        """Return a list of token ids, given as one id or a list; [] if the key is absent or null."""
        value = self.get(name)
        if value is None:
            return []
        ids = value if isinstance(value, list) else [value]
        if not all(type(token_id) is int and 0 <= token_id < vocab_size for token_id in ids):
            raise self._wrong(name, f"token ids below vocab_size {vocab_size}")
        return ids

    def _required(self, name: str) -> Any:
        if name not in self._values:
            raise self.error(f"{self._prefix}{name} is missing")
        return self._values[name]

    def _wrong(self, name: str, expected: str) -> CheckpointError:
        return self.error(f"{self.described(name)}, not {expected}")
