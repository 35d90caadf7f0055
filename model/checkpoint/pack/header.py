"""Header of a pack's weight file: what it holds, and where. Imports no torch.

The file begins with a prefix of 48 bytes: magic, version, length and SHA-256 sum of the header, a JSON object, which
follows. Tensors come behind it, each at the beginning of a page. The prefix is written when everything else is on the
disk: a file without it is not a pack.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from model.checkpoint.errors import CheckpointError
from model.checkpoint.stored_tensor import StoredTensor
from model.config import ModelConfig

WEIGHTS_NAME = "weights.smoe"
MAGIC = b"SMOEPACK"
VERSION = 1  # of prefix and header
# Of the bytes of packed matrices, by quantization; raise one when the native library packs these differently.
LAYOUTS = {"none": 1, "lossless": 1, "int8": 1, "int4": 2}
DTYPES = ["float32", "bfloat16"]
PREFIX = struct.Struct("<8sII32s")  # magic, version, bytes of the header, its SHA-256 sum
PAGE_BYTES = 4096
MAX_HEADER_BYTES = 1 << 28
MAX_TENSOR_TEXT = 512  # bytes of the header per tensor, with what is written about its checkpoint's weights
# What of a config the packed weights depend on: names of ModelConfig.
SIZES = ("vocab_size", "dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_dim", "num_experts")
KINDS = ("architecture", "tied_head")
ELEMENT_BYTES = {"uint8": 1, "int32": 4, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class PackedTensor:
    """Place of a tensor in the file, and its SHA-256 sum."""

    name: str
    start: int  # byte position in the file, a multiple of PAGE_BYTES
    num_bytes: int
    dtype: str  # a key of ELEMENT_BYTES
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class PackHeader:
    """Contents of a pack."""

    source: str  # path of the checkpoint that was packed
    contents: str  # digest of that checkpoint's weights, as in CheckpointIdentity
    quantization: str  # a key of LAYOUTS
    dtype: str  # of the other weights: float32 or bfloat16
    network: dict[str, Any]  # sizes that the weights have, see network_sizes()
    stored: tuple[StoredTensor, ...]  # the checkpoint's weights by their own names; `file` and `start` are the pack's
    tensors: Mapping[str, PackedTensor]
    matrices: dict[str, Any]  # how the tensors form the network's matrices, see model/pack/network.py
    file_bytes: int  # of the whole file


def is_pack(path: Path) -> bool:
    """Return whether directory `path` is a pack. Raises CheckpointError if the disk cannot tell."""
    try:
        return (path / WEIGHTS_NAME).exists()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def network_sizes(config: ModelConfig) -> dict[str, Any]:
    """Return what of a config the packed weights depend on."""
    return {name: getattr(config, name) for name in (*KINDS, *SIZES)}


def header_space(config: ModelConfig) -> int:
    """Return how many bytes of the file to leave for prefix and header: more than a header of this network has."""
    tensors = 16 + config.num_layers * (16 + 8 * config.num_experts)
    return -(-tensors * MAX_TENSOR_TEXT // PAGE_BYTES) * PAGE_BYTES


def write_header(stream: BinaryIO, header: PackHeader) -> bytes:
    """Write the header at its place; return the prefix, for the beginning of the file."""
    fields = asdict(header)
    fields["stored"] = [[w.name, w.dtype, w.shape, w.num_bytes] for w in header.stored]
    fields["tensors"] = [list(asdict(tensor).values()) for tensor in header.tensors.values()]
    content = json.dumps(fields | {"layout": LAYOUTS[header.quantization]}).encode()
    assert PREFIX.size + len(content) <= min(tensor.start for tensor in header.tensors.values())
    stream.seek(PREFIX.size)
    stream.write(content)
    return PREFIX.pack(MAGIC, VERSION, len(content), hashlib.sha256(content).digest())


def read_header(directory: Path) -> PackHeader:
    """Read and check the header of a pack, and the size of the file. Reads no weights.

    Raises CheckpointError if the file is damaged or incomplete, and with the command that makes the pack anew if its
    version or layout is another one.
    """
    header, size = read_any_header(directory)
    if size != header.file_bytes:
        lost = first_lost_tensor(header, size)
        where = f", without tensor {lost} and what follows" if lost else ""
        file = directory / WEIGHTS_NAME
        raise CheckpointError(f"{file} is incomplete: it has {size} of {header.file_bytes} bytes{where}")
    return header


def read_any_header(directory: Path) -> tuple[PackHeader, int]:
    """Read the header of a pack whose tensors may be incomplete, and the size of the file. Raises CheckpointError."""
    file = directory / WEIGHTS_NAME
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            fields = _read_fields(file, stream, size)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    layout, own = fields.get("layout"), LAYOUTS.get(str(fields.get("quantization")))
    if own is not None and layout != own:
        raise CheckpointError(f"{file}: packed in layout {layout}, not {own}{_anew(directory, fields)}")
    try:
        return _header(file, fields), size
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{file} is damaged: its header is not that of a pack") from None


def checked_header(directory: Path, config: ModelConfig) -> PackHeader:
    """Read the header of a pack whose config.json gives `config`. Raises CheckpointError unless both agree."""
    header = read_header(directory)
    for name, size in network_sizes(config).items():
        if header.network.get(name) != size:
            packed = header.network.get(name)
            raise CheckpointError(f"{directory}: config.json was changed: {name} is {size}, the pack has {packed}")
    return header


def first_lost_tensor(header: PackHeader, size: int) -> str | None:
    """Return the first tensor that does not fit into a file of `size` bytes; None if all do."""
    lost = [tensor for tensor in header.tensors.values() if tensor.start + tensor.num_bytes > size]
    return min(lost, key=lambda tensor: tensor.start).name if lost else None


def _read_fields(file: Path, stream: BinaryIO, size: int) -> dict[str, Any]:
    prefix = stream.read(PREFIX.size)
    if len(prefix) < PREFIX.size or prefix[:8] != MAGIC:
        raise CheckpointError(f"{file} is not a pack, or was not written to its end: pack the model again")
    _, version, num_bytes, digest = PREFIX.unpack(prefix)
    if version != VERSION:
        raise CheckpointError(f"{file}: pack of version {version}, not {VERSION}{_anew(file.parent, {})}")
    if num_bytes > min(MAX_HEADER_BYTES, size - PREFIX.size):
        raise CheckpointError(f"{file} is damaged or incomplete: it has {size} bytes, and its header ends behind them")
    content = stream.read(num_bytes)
    if hashlib.sha256(content).digest() != digest:
        raise CheckpointError(f"{file} is damaged: the checksum of its header is another one")
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{file} is damaged: its header is not that of a pack")
    return fields


def _anew(directory: Path, fields: Mapping[str, Any]) -> str:
    """Name the command that makes the pack of a header anew."""
    dtype, quantization = fields.get("dtype"), fields.get("quantization", "none")
    flags = f" --dtype {dtype}" if dtype in DTYPES else ""
    if quantization != "none":
        flags += f" --quantization {quantization}"
    return f"; move it away and make it anew with: smoe pack {fields.get('source', 'MODEL')}{flags} -o {directory}"


def _header(file: Path, fields: dict[str, Any]) -> PackHeader:
    stored = tuple(
        StoredTensor(file, name, dtype, tuple(shape), 0, num_bytes)
        for name, dtype, shape, num_bytes in fields["stored"]
    )
    tensors = [
        PackedTensor(name, start, size, dtype, tuple(shape), digest)
        for name, start, size, dtype, shape, digest in fields["tensors"]
    ]
    end = fields["file_bytes"]
    for tensor in tensors:
        if not isinstance(tensor.name, str) or not all(_is_count(size) for size in (*tensor.shape, tensor.start)):
            raise ValueError(tensor.name)
        size = prod(tensor.shape) * ELEMENT_BYTES[tensor.dtype]
        if tensor.start % PAGE_BYTES or size != tensor.num_bytes or not 0 < tensor.start <= end - size:
            raise ValueError(tensor.name)
    _check_kinds(fields, stored)
    by_name = {tensor.name: tensor for tensor in tensors}
    rest = {name: fields[name] for name in ("source", "contents", "quantization", "dtype", "network", "matrices")}
    return PackHeader(**rest, stored=stored, tensors=by_name, file_bytes=end)


def _check_kinds(fields: dict[str, Any], stored: tuple[StoredTensor, ...]) -> None:
    """Raise ValueError for values that no pack has: a header may come from a stranger, its checksum too."""
    if fields["quantization"] not in LAYOUTS or fields["dtype"] not in DTYPES:
        raise ValueError("quantization, dtype")
    if not all(isinstance(fields[name], dict) for name in ("network", "matrices")):
        raise ValueError("network, matrices")
    if not all(isinstance(fields[name], str) for name in ("source", "contents")):
        raise ValueError("source, contents")
    if not all(_is_count(fields["network"][name], least=0 if name == "num_experts" else 1) for name in SIZES):
        raise ValueError("network")
    for weight in stored:
        sizes = (*weight.shape, weight.num_bytes)
        if not isinstance(weight.name, str) or len(sizes) < 2 or not all(map(_is_count, sizes)):
            raise ValueError(weight.name)


def _is_count(size: object, least: int = 1) -> bool:
    return type(size) is int and least <= size < 1 << 62
