"""Headers of GGUF files are read as the `gguf` package reads them, and damaged ones are refused in one line."""

import struct
import tracemalloc
from pathlib import Path

import gguf
import pytest

from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf.file import read_file
from model.checkpoint.gguf.split_files import files_of, read_model
from tests.support.checkpoints.gguf import GgufShape, all_of, write_fields, write_gguf

FIELDS = {"a.text": "naïve \u2581", "a.flag": True, "a.int": 7, "a.float": 0.5, "a.texts": ["x", ""], "a.ints": [1, -2]}


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _header(num_tensors: int = 0, fields: bytes = b"", num_fields: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_fields) + fields


def _field(key: bytes, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


def _tensor(name: bytes, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def test_fields_and_tensors_equal_those_of_the_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, GgufShape(fields=FIELDS))
    found, oracle = read_file(path), gguf.GGUFReader(path)
    expected = {name: field.contents() for name, field in oracle.fields.items() if not name.startswith("GGUF.")}
    assert found.fields == expected
    assert {
        (
            tensor.name,
            tuple(map(int, reversed(tensor.shape))),
            tensor.tensor_type.name,
            tensor.data_offset,
            tensor.n_bytes,
        )
        for tensor in oracle.tensors
    } == {(t.name, t.shape, t.dtype, t.start, t.num_bytes) for t in found.tensors.values()}


def test_every_type_of_field_is_read(tmp_path: Path) -> None:
    values = {0: ("B", 200), 1: ("b", -2), 2: ("H", 60000), 3: ("h", -3), 4: ("I", 2**31), 5: ("i", -5), 6: ("f", 0.25)}
    values |= {7: ("?", True), 10: ("Q", 2**63), 11: ("q", -(2**60)), 12: ("d", 1e300)}
    fields = b"".join(_field(f"k{kind}".encode(), kind, struct.pack(f"<{f}", v)) for kind, (f, v) in values.items())
    (tmp_path / "a").write_bytes(_header(0, fields, len(values)))
    assert read_file(tmp_path / "a").fields == {f"k{kind}": value for kind, (_, value) in values.items()}


HUGE = 2**63
ALIGNED = _header(1, _tensor(b"t", (32,)), 0)
DEFECTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "html": (b"<html>", "HTML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1", "git-lfs"),
    "pickle": (b"PK\x03\x04....", "pickled"),
    "ggml": (b"tjgg\x03\x00\x00\x00", "before GGUF"),
    "something": (b"abcdefgh", "not a GGUF file"),
    "magic alone": (b"GGUF", "ends within its header"),
    "version 1": (_header(version=1), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "many tensors": (_header(num_tensors=HUGE), "tensors, more than"),
    "more tensors than bytes": (_header(num_tensors=1000), "ends within"),
    "many fields": (_header(num_fields=HUGE), "fields, more than"),
    "more fields than bytes": (_header(num_fields=1000), "ends within"),
    "a long key": (_header(0, struct.pack("<Q", HUGE) + b"a" * 50, 1), "bytes in a text"),
    "a key beyond the end": (_header(0, struct.pack("<Q", 1000) + b"a" * 50, 1), "ends within"),
    "a key that is not UTF-8": (_header(0, _field(b"\xff", 0, b"\x01"), 1), "UTF-8"),
    "a key twice": (_header(0, _field(b"k", 0, b"\x01") * 2, 2), "'k' occurs twice"),
    "an unknown type": (_header(0, _field(b"k", 99, b"\x01"), 1), "unknown type 99"),
    "a huge array": (_header(0, _field(b"k", 9, struct.pack("<IQ", 4, HUGE)), 1), "elements in 'k'"),
    "an array beyond the end": (_header(0, _field(b"k", 9, struct.pack("<IQ", 4, 1000)), 1), "ends within"),
    "texts beyond the end": (_header(0, _field(b"k", 9, struct.pack("<IQ", 8, 1000)), 1), "ends within"),
    "arrays in an array": (_header(0, _field(b"k", 9, struct.pack("<IQ", 9, 1)), 1), "unknown type 9"),
    "an alignment of 3": (_header(0, _field(b"general.alignment", 4, struct.pack("<I", 3)), 1), "alignment is 3"),
    "an alignment of 0": (_header(0, _field(b"general.alignment", 4, struct.pack("<I", 0)), 1), "alignment is 0"),
    "many dimensions": (_header(1, _tensor(b"t", (1,) * 5) + bytes(99)), "dimensions in tensor 't'"),
    "no dimensions": (_header(1, _tensor(b"t", ()) + bytes(99)), r"shape \[\]"),
    "a dimension of 0": (_header(1, _tensor(b"t", (32, 0)) + bytes(99)), r"shape \[0, 32\]"),
    "a huge dimension": (_header(1, _tensor(b"t", (HUGE,)) + bytes(99)), "entries in tensor 't'"),
    "huge in all": (_header(1, _tensor(b"t", (2**32,) * 4) + bytes(99)), "ends within tensor 't'"),
    "a row that is no multiple": (_header(1, _tensor(b"t", (33,), kind=8) + bytes(99)), "not a multiple of 32"),
    "IQ1_S": (_header(1, _tensor(b"t", (256,), kind=19) + bytes(99)), "type IQ1_S, which is not supported; IQ2_XXS,"),
    "IQ1_M": (_header(1, _tensor(b"t", (256,), kind=29) + bytes(99)), "type IQ1_M, which is not supported; IQ2_XXS,"),
    "a type of 2024": (_header(1, _tensor(b"t", (256,), kind=31) + bytes(99)), "type Q4_0_4_4, which is not supported"),
    "a type of 2026": (_header(1, _tensor(b"t", (256,), kind=40) + bytes(99)), "type NVFP4, which is not supported"),
    "an unknown number": (_header(1, _tensor(b"t", (256,), kind=77) + bytes(99)), "type number 77"),
    "a tensor beyond the end": (ALIGNED + bytes(100), "ends within tensor 't'"),
    "a tensor twice": (
        _header(2, _tensor(b"t", (8,)) + _tensor(b"t", (8,), offset=32) + bytes(99)),
        "'t' occurs twice",
    ),
    "an overlap": (_header(2, _tensor(b"t", (16,)) + _tensor(b"u", (8,), offset=32) + bytes(999)), "'u' overlaps"),
    "an unaligned offset": (_header(1, _tensor(b"t", (8,), offset=4) + bytes(99)), "multiple of 32 bytes"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_damaged_header_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, pattern = DEFECTS[name]
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=pattern) as caught:
        read_file(tmp_path / "a.gguf")
    assert "\n" not in str(caught.value) and str(tmp_path / "a.gguf") in str(caught.value)


BIG = 2**27  # below the limits of a header, far above the file
CLAIMS = {
    "a key": struct.pack("<Q", BIG),
    "a text": _field(b"k", 8, struct.pack("<Q", BIG)),
    "numbers": _field(b"k", 9, struct.pack("<IQ", 12, 2**22)),
    "texts": _field(b"k", 9, struct.pack("<IQ", 8, 2**22)),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_nothing_is_allocated_for_what_a_file_only_claims(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(_header(0, CLAIMS[name] + bytes(64), 1))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="ends within its header"):
        read_file(tmp_path / "a.gguf")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20  # the buffer of the file takes 1 MiB


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_file(tmp_path)


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Files of a model in several parts, first part first."""
    write_gguf(tmp_path / "m.gguf", GgufShape(tensors_per_part=5))
    return sorted(tmp_path.glob("m-*.gguf"))


def test_parts_are_read_as_one_model(parts: list[Path], tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf", GgufShape())
    whole, model = read_model(tmp_path / "whole.gguf"), read_model(parts[0])
    assert len(parts) == 3 and files_of(parts[0]) == parts and files_of(tmp_path / "whole.gguf") != parts
    assert whole.tensors.keys() == model.tensors.keys()
    assert {tensor.file for tensor in model.tensors.values()} <= set(parts)


def test_a_part_that_is_missing_or_foreign_is_named(parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not the first of 3 parts"):
        read_model(parts[1])
    renamed = parts[0].rename(tmp_path / "first.gguf")
    with pytest.raises(CheckpointError, match=r"must be named .*-00001-of-00003"):
        read_model(renamed)
    renamed.rename(parts[0])
    parts[2].unlink()
    with pytest.raises(CheckpointError, match=r"m-00003-of-00003\.gguf is missing"):
        read_model(parts[0])
    write_fields(parts[2], {"split.count": 7})
    with pytest.raises(CheckpointError, match="not one of 3 parts"):
        read_model(parts[0])
    write_fields(parts[2], {"split.count": 3})
    with pytest.raises(CheckpointError, match=r"parts have \d+ tensors, but \d+ are listed"):
        read_model(parts[0])
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(CheckpointError, match="and in another part"):
        read_model(parts[0])


def test_only_floats_need_no_blocks(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", GgufShape(dim=40, num_heads=2, num_kv_heads=1, hidden_dim=24), all_of("F16"))
    assert {tensor.dtype for tensor in read_file(tmp_path / "a.gguf").tensors.values()} == {"F16", "F32"}
