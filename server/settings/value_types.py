"""Types of settings whose values are parsed or checked beyond pydantic's own types: sizes, lists, names, files."""

import os
import re
import stat
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
MAX_SIZE_DIGITS = 20
MAX_SIZE_BYTES = 1 << 60
MAX_COUNT = (1 << 31) - 1  # larger numbers do not fit the integers of messages and kernels
MAX_KEY_FILE_CHARACTERS = 1 << 20
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE | re.ASCII)
COUNT = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([kKmM])", re.ASCII)
OTHER_UNIT = re.compile(r"\d[\d.]*\s*[A-Za-z]+", re.ASCII)
COUNT_UNITS = {"k": 10**3, "m": 10**6, "K": 2**10, "M": 2**20}
READ_ONCE = "a pipe can be read only once"
IS_SUCCESSOR = "is_successor"  # in pydantic's context of a validation: whether SIGHUP has started this process
HOST_NAME = re.compile(r"\*|[\w-][\w.-]*|\[?[0-9a-f]*(?::[0-9a-f.]*){2,}\]?", re.IGNORECASE | re.ASCII)


def parse_size(value: object) -> object:
    """Return the bytes in "1GiB", "512M" or "1.5 GB": binary units with an i, decimal ones without.

    Values that are not text pass unchanged. Raises ValueError.
    """
    size = _size(value) if isinstance(value, str) else value
    if isinstance(size, int) and size > MAX_SIZE_BYTES:
        raise ValueError("is more than any machine has")
    return size


def _size(text: str) -> int:
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("should be a number of bytes, or a number with a unit such as 512MiB or 1.5GiB")
    number, unit = match.groups()
    if len(number) > MAX_SIZE_DIGITS:
        raise ValueError("is more than any machine has")
    return int(float(number) * UNITS[(unit or "").lower()])


def parse_count(value: object) -> object:
    """Return the number in "32k" (32,000) or "32K" (32,768).

    Values of other forms pass unchanged. Raises ValueError if it is no whole number, or has another unit.
    """
    match = COUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        if isinstance(value, str) and OTHER_UNIT.fullmatch(value.strip()):
            raise ValueError("should be a whole number, such as 32768, 32k (32,000) or 32K (32,768)")
        return value
    count = Fraction(match[1]) * COUNT_UNITS[match[2]]
    if count.denominator != 1:
        raise ValueError("should be a whole number")
    return count.numerator


def split_list(value: object) -> object:
    """Split "a,b", the form of lists in environment variables. Values that are not text pass unchanged.

    Raises ValueError for commas and spaces alone: variables that are not set may have stood between them.
    """
    if not isinstance(value, str):
        return value
    items = [item.strip() for item in value.split(",") if item.strip()]
    if value and not items:
        raise ValueError("has nothing beside commas and spaces")
    return items


def expand_home(path: Path) -> Path:
    """Return the path with a home directory for ~, which no shell has expanded in variables and files."""
    expanded = os.path.expanduser(path)
    return Path("/" + expanded.lstrip("/")) if expanded.startswith("/") else Path(expanded)


@dataclass(frozen=True)
class KeyFile:
    """File with API keys, read when the settings are loaded. Its text is its path: keys stay secret."""

    path: Path
    keys: tuple[str, ...] = field(repr=False)

    def __str__(self) -> str:
        return str(self.path)


def read_key_file(path: object) -> object:
    """Return the file's keys: one per line, without blank lines and lines that start with #. Raises ValueError.

    The file may be a pipe. Errors do not repeat the path: it may be a key that was given by mistake.
    """
    if path is None or isinstance(path, KeyFile):
        return path
    if not isinstance(path, str | Path):
        raise ValueError("should be the path of a file")
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(MAX_KEY_FILE_CHARACTERS + 1)
            is_pipe = stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or NUL in the path
        raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}") from None
    if len(text) > MAX_KEY_FILE_CHARACTERS:
        raise ValueError(f"is longer than {MAX_KEY_FILE_CHARACTERS} characters")
    lines = (line.strip() for line in text.split("\n"))
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ValueError("has no keys; write one per line" + (f"; {READ_ONCE}" if is_pipe else ""))
    return KeyFile(Path(path), keys)


def _check_file(path: Path) -> Path:
    """Return the path of a file that is read several times, so that it is no pipe. Raises ValueError."""
    if stat.S_ISFIFO(_status(path).st_mode):
        raise ValueError(f"is read several times, but {READ_ONCE}; give a file")
    return path


def _check_file_or_pipe(path: Path, info: ValidationInfo) -> Path:
    """Return the path of a file that each process reads once, so that the first one can read a pipe.

    At SIGHUP the pipe is empty for the new process, and a file that is empty then is being written. Raises ValueError.
    """
    if _status(path).st_size == 0 and (info.context or {}).get(IS_SUCCESSOR):  # pipes have no size
        raise ValueError(f"is empty; {READ_ONCE}")
    return path


def _status(path: Path) -> os.stat_result:
    """Return the status of a file or a pipe. Raises ValueError."""
    try:
        status = path.stat()
    except (FileNotFoundError, ValueError):  # ValueError: NUL in the path
        raise ValueError("there is no such file") from None
    except OSError as error:  # such as below a folder that this user may not enter
        raise ValueError(error.strerror) from None
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISFIFO(status.st_mode):
        raise ValueError("should be a file" + (", not a directory" if stat.S_ISDIR(status.st_mode) else ""))
    return status


def _check_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if any(not name or name != name.strip() for name in names):
        raise ValueError("should not be empty or have spaces at its ends")
    if len(set(names)) != len(names):
        raise ValueError("has the same value twice")
    return names


def _check_lora(pairs: tuple[str, ...]) -> tuple[str, ...]:
    names = [pair.partition("=")[0] for pair in pairs]
    if any(
        not name or name != name.strip() or not pair.partition("=")[2] for name, pair in zip(names, pairs, strict=True)
    ):
        raise ValueError("should be NAME=DIR, such as sql=/models/sql-adapter")
    if len(set(names)) != len(names):
        raise ValueError("has the same name twice")
    return pairs


def _check_host_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if any(not HOST_NAME.fullmatch(name) for name in names):
        raise ValueError("should be a host name or an address without scheme, port and path, or *")
    return names


def _check_root_path(path: str) -> str:
    path = path.rstrip("/")
    if path and not path.startswith("/"):
        raise ValueError("should start with /")
    return path


def _check_http_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        is_url = False
    if not is_url:
        raise ValueError("should be a URL such as http://127.0.0.1:4318")
    return url


Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]
TokenCount = Annotated[Count, BeforeValidator(parse_count)]
Bytes = Annotated[int, Field(gt=0), BeforeValidator(parse_size)]
Names = Annotated[tuple[str, ...], BeforeValidator(split_list)]
DistinctNames = Annotated[Names, AfterValidator(_check_distinct)]
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
]
File = Annotated[Path, AfterValidator(_check_file)]
SocketPath = Annotated[Path, AfterValidator(expand_home)]
FileOrPipe = Annotated[Path, AfterValidator(_check_file_or_pipe)]
ApiKeyFile = Annotated[KeyFile | None, BeforeValidator(read_key_file)]
LoraPaths = Annotated[Names, AfterValidator(_check_lora)]
HostNames = Annotated[Names, AfterValidator(_check_host_names)]
RootPath = Annotated[str, AfterValidator(_check_root_path)]
HttpUrl = Annotated[str, AfterValidator(_check_http_url)]
