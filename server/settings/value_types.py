"""Types of settings whose values are parsed or checked beyond pydantic's own types: sizes, lists, names, paths."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, PositiveInt

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
MAX_SIZE_DIGITS = 20
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE | re.ASCII)
HOST_NAME = re.compile(r"\*|[\w.-]+|\[?[0-9a-f]*(?::[0-9a-f.]*){2,}\]?", re.IGNORECASE | re.ASCII)


def parse_size(value: object) -> object:
    """Return the bytes in "1GiB", "512M" or "1.5 GB": binary units with an i, decimal ones without.

    Values that are not text pass unchanged. Raises ValueError.
    """
    if not isinstance(value, str):
        return value
    match = SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError("should be a number of bytes, or a number with a unit such as 512MiB or 1.5GiB")
    number, unit = match.groups()
    if len(number) > MAX_SIZE_DIGITS:
        raise ValueError("is more than any machine has")
    return int(float(number) * UNITS[(unit or "").lower()])


def split_list(value: object) -> object:
    """Split "a,b", the form of lists in environment variables. Values that are not text pass unchanged."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def _check_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if any(not name or name != name.strip() for name in names):
        raise ValueError("should not be empty or have spaces at its ends")
    if len(set(names)) != len(names):
        raise ValueError("has the same value twice")
    return names


def _check_host_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if any(not HOST_NAME.fullmatch(name) for name in names):
        raise ValueError("should be a host name or an address without scheme, port and path, or *")
    return names


def _check_root_path(path: str) -> str:
    path = path.rstrip("/")
    if path and not path.startswith("/"):
        raise ValueError("should start with /")
    return path


Bytes = Annotated[PositiveInt, BeforeValidator(parse_size)]
Names = Annotated[tuple[str, ...], BeforeValidator(split_list)]
DistinctNames = Annotated[Names, AfterValidator(_check_distinct)]
HostNames = Annotated[Names, AfterValidator(_check_host_names)]
RootPath = Annotated[str, AfterValidator(_check_root_path)]
