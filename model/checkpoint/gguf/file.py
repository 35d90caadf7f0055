"""Read and check the headers of GGUF files. Every count is compared with the file's size before memory is allocated.

Source of the format: docs/gguf.md of ggml. Read are versions 2 and 3, little-endian.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf.block_types import BLOCK_TYPES, UNSUPPORTED_TYPES
from model.checkpoint.json_files import LFS_POINTER, printable
from model.checkpoint.stored_tensor import StoredTensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 1 << 28
MAX_FIELDS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_ELEMENTS = 1 << 22  # of an array
MAX_DIMS = 4
MAX_DIM = 1 << 32
MAX_ALIGNMENT = 1 << 20

# Type of a value -> its format for struct. 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
SMALLEST_FIELD = 8 + 1 + 4 + 1  # bytes of a field with a key of one character
SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8

Scalar: TypeAlias = bool | int | float | str
Value: TypeAlias = Scalar | list[Scalar]


@dataclass(frozen=True)
class GgufFile:
    """Header of one file. Tensors have the file's own names; shapes are outermost first, [outputs, inputs]."""

    path: Path
    fields: dict[str, Value]
    tensors: dict[str, StoredTensor]


def read_file(path: Path) -> GgufFile:
    """Read the header of one GGUF file. Raises CheckpointError."""
    try:
        size = path.stat().st_size
        with path.open("rb", buffering=1 << 20) as stream:
            return _read(path, _HeaderReader(path, stream, size))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def write_fields(source: Path, target: Path) -> None:
    """Write a GGUF file with the fields of `source`, and no tensors. Fields about the parts of a model are left out.

    Raises CheckpointError for a damaged file, and OSError if the target cannot be written.
    """
    with source.open("rb") as stream:
        reader = _HeaderReader(source, stream, source.stat().st_size)
        _check_start(reader)
        start = reader.position
        reader.take(8)  # the number of tensors
        num_fields = reader.count("Q", MAX_FIELDS, "fields", SMALLEST_FIELD)
        places = []
        for _ in range(num_fields):
            first, key = reader.position, reader.text()
            _value(reader, key)
            places += [] if key.startswith("split.") else [(first, reader.position)]
        stream.seek(0)
        content = stream.read(reader.position)
    fields = b"".join(content[first:end] for first, end in places)
    target.write_bytes(content[:start] + struct.pack("<QQ", 0, len(places)) + fields)


class _HeaderReader:
    """Cursor in a file's header. Raises CheckpointError instead of reading beyond the file or the largest header."""

    def __init__(self, path: Path, stream: BinaryIO, size: int) -> None:
        self.path = path
        self.size = size
        self.position = 0
        self._stream = stream

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {message}")

    def take(self, num_bytes: int) -> bytes:
        self.require(num_bytes)
        content = self._stream.read(num_bytes)
        if len(content) < num_bytes:
            raise self.error("the file ends within its header")
        self.position += num_bytes
        return content

    def require(self, num_bytes: int) -> None:
        """Check that so many bytes are left, before anything is allocated for them."""
        if num_bytes > self.size - self.position:
            raise self.error("damaged: the file ends within its header")
        if self.position + num_bytes > MAX_HEADER_BYTES:
            raise self.error(f"damaged: the header has more than {MAX_HEADER_BYTES >> 20} MiB")

    def scalar(self, kind: str) -> Scalar:
        return self.scalars(kind, 1)[0]

    def scalars(self, kind: str, count: int) -> list[Scalar]:
        """Read `count` numbers. A boolean is one byte."""
        layout = f"<{count}{kind}"
        return list(struct.unpack(layout, self.take(struct.calcsize(layout))))

    def count(self, kind: str, at_most: int, what: str, least_bytes: int = 0) -> int:
        """Read a number of things, each of at least `least_bytes` in what follows."""
        count = self.scalar(kind)
        assert isinstance(count, int)
        if count > at_most:
            raise self.error(f"damaged: {count} {what}, more than {at_most}")
        self.require(count * least_bytes)
        return count

    def text(self) -> str:
        num_bytes = self.count("Q", MAX_HEADER_BYTES, "bytes in a text", least_bytes=1)
        try:
            return self.take(num_bytes).decode("utf-8")
        except UnicodeDecodeError:
            raise self.error("damaged: a text is not valid UTF-8") from None


def _read(path: Path, reader: _HeaderReader) -> GgufFile:
    _check_start(reader)
    num_tensors = reader.count("Q", MAX_TENSORS, "tensors", SMALLEST_TENSOR)
    num_fields = reader.count("Q", MAX_FIELDS, "fields", SMALLEST_FIELD)
    fields: dict[str, Value] = {}
    for _ in range(num_fields):
        key = reader.text()
        if key in fields:
            raise reader.error(f"the field {printable(key)} occurs twice")
        fields[key] = _value(reader, key)
    tensors = [_tensor(reader) for _ in range(num_tensors)]
    return GgufFile(path, fields, _placed(reader, tensors, _alignment(reader, fields)))


def _check_start(reader: _HeaderReader) -> None:
    start = reader.take(min(4, reader.size))
    if start != MAGIC:
        raise reader.error(_foreign_content(reader, start))
    version = reader.scalar("I")
    if version not in VERSIONS:
        big_endian = isinstance(version, int) and version & 0xFFFF == 0
        reason = "big-endian files are not supported" if big_endian else "supported are 2 and 3: convert the model anew"
        raise reader.error(f"GGUF version {version}; {reason}")


def _foreign_content(reader: _HeaderReader, start: bytes) -> str:
    """Say what the file is instead of GGUF."""
    if LFS_POINTER.startswith(start) and start:
        return "a git-lfs pointer, not the weights; fetch them with: git lfs pull"
    if start in (b"ggml", b"tjgg", b"lmgg", b"fmgg"):
        return "a GGML file, the format before GGUF; download a .gguf file of the model"
    if start.lstrip()[:1] == b"<":
        return "an HTML or XML page; the download went wrong"
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return "a pickled torch file, which is never loaded; pass a .gguf file or a directory with safetensors files"
    return "not a GGUF file; pass a .gguf file or the checkpoint's directory" if start else "the file is empty"


def _value(reader: _HeaderReader, key: str) -> Value:
    kind = reader.scalar("I")
    if kind != ARRAY:
        return _scalar(reader, key, kind)
    kind = reader.scalar("I")
    if kind == STRING:
        return [reader.text() for _ in range(reader.count("Q", MAX_ELEMENTS, f"elements in {printable(key)}", 8))]
    layout = _layout(reader, key, kind)
    num_elements = reader.count("Q", MAX_ELEMENTS, f"elements in {printable(key)}", struct.calcsize(layout))
    return reader.scalars(layout, num_elements)


def _scalar(reader: _HeaderReader, key: str, kind: Scalar) -> Scalar:
    return reader.text() if kind == STRING else reader.scalar(_layout(reader, key, kind))


def _layout(reader: _HeaderReader, key: str, kind: Scalar) -> str:
    layout = SCALARS.get(kind) if isinstance(kind, int) else None
    if layout is None:
        raise reader.error(f"damaged: the field {printable(key)} has the unknown type {kind}")
    return layout


@dataclass(frozen=True)
class _TensorEntry:
    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


def _tensor(reader: _HeaderReader) -> _TensorEntry:
    name = reader.text()
    num_dims = reader.count("I", MAX_DIMS, f"dimensions in tensor {printable(name)}", 8)
    innermost_first = [reader.count("Q", MAX_DIM, f"entries in tensor {printable(name)}") for _ in range(num_dims)]
    type_id, offset = reader.scalar("I"), reader.scalar("Q")
    assert isinstance(type_id, int) and isinstance(offset, int)
    return _TensorEntry(name, tuple(reversed(innermost_first)), type_id, offset)


def _alignment(reader: _HeaderReader, fields: dict[str, Value]) -> int:
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise reader.error(f"general.alignment is {printable(alignment)}, not a power of 2")
    return alignment


def _placed(reader: _HeaderReader, entries: list[_TensorEntry], alignment: int) -> dict[str, StoredTensor]:
    """Return the tensors with their places in the file, which must not overlap."""
    data_start = -(-reader.position // alignment) * alignment
    tensors: dict[str, StoredTensor] = {}
    end, before = data_start, ""
    for entry in sorted(entries, key=lambda entry: entry.offset):
        tensor = _stored(reader, entry, data_start)
        where = f"tensor {printable(entry.name)}"
        if entry.name in tensors:
            raise reader.error(f"{where} occurs twice")
        if entry.offset % alignment:
            raise reader.error(f"damaged: {where} does not start at a multiple of {alignment} bytes")
        if tensor.start < end:
            raise reader.error(f"damaged: {where} overlaps tensor {printable(before)}")
        end, before = tensor.start + tensor.num_bytes, entry.name
        if end > reader.size:
            raise reader.error(f"damaged or incomplete: the file ends within {where}")
        tensors[entry.name] = tensor
    return tensors


def _stored(reader: _HeaderReader, entry: _TensorEntry, data_start: int) -> StoredTensor:
    where = f"tensor {printable(entry.name)}"
    block = BLOCK_TYPES.get(entry.type_id)
    if block is None:
        name = UNSUPPORTED_TYPES.get(entry.type_id, f"number {entry.type_id}")
        raise reader.error(
            f"{where} has type {name}, which is not supported; IQ2_XXS, IQ3_M, Q4_K_M and Q6_K files are"
        )
    if not entry.shape or 0 in entry.shape:
        raise reader.error(f"damaged: {where} has the shape {list(entry.shape)}")
    if entry.shape[-1] % block.block_len:
        raise reader.error(f"damaged: {where} has rows of {entry.shape[-1]}, not a multiple of {block.block_len}")
    num_bytes = math.prod(entry.shape) // block.block_len * block.block_bytes
    return StoredTensor(reader.path, entry.name, block.name, entry.shape, data_start + entry.offset, num_bytes)
