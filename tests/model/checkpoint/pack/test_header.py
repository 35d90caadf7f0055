"""A pack's header: files that are cut, damaged, foreign or of another version are refused in one line."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.config_file import load_config
from model.checkpoint.errors import CheckpointError
from model.checkpoint.pack import header as headers
from model.checkpoint.pack.check import bus_error_reason, verify_pack
from model.checkpoint.pack.experts import expert_tensors
from model.checkpoint.pack.header import (
    MAGIC,
    PREFIX,
    VERSION,
    WEIGHTS_NAME,
    PackedTensor,
    PackHeader,
    checked_header,
    header_space,
    is_pack,
    network_sizes,
    read_header,
    write_header,
)
from tests.support.checkpoints.mixtral import edit_config
from tests.support.checkpoints.packs import flip_byte
from tests.support.paths import DEMO

CONTENT = bytes(range(256)) * 32  # two pages


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A pack of two tensors for the demo's config."""
    config, _ = load_config(DEMO)
    (tmp_path / "config.json").write_bytes((DEMO / "config.json").read_bytes())
    start = header_space(config)
    half = len(CONTENT) // 2
    tensors = {
        name: PackedTensor(
            name,
            start + index * half,
            half,
            "float32",
            (half // 8, 2),
            hashlib.sha256(CONTENT[index * half : (index + 1) * half]).hexdigest(),
        )
        for index, name in enumerate(("first", "second"))
    }
    header = PackHeader(
        source="/models/a",
        contents="c" * 64,
        quantization="none",
        dtype="bfloat16",
        network=network_sizes(config),
        stored=(),
        tensors=tensors,
        matrices={"head": {"num_inputs": 3}},
        file_bytes=start + len(CONTENT),
    )
    with (tmp_path / WEIGHTS_NAME).open("wb") as stream:
        prefix = write_header(stream, header)
        stream.seek(start)
        stream.write(CONTENT)
        stream.seek(0)
        stream.write(prefix)
    return tmp_path


def test_a_header_is_read_as_it_was_written(pack: Path) -> None:
    header = read_header(pack)
    assert is_pack(pack) and not is_pack(DEMO)
    assert list(header.tensors) == ["first", "second"]
    assert header.tensors["second"].shape == (512, 2)
    assert (header.source, header.quantization, header.dtype) == ("/models/a", "none", "bfloat16")
    assert header.matrices == {"head": {"num_inputs": 3}}
    assert verify_pack(pack, lambda done, total: None) == 2


def cut_tensor(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)


def cut_header(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(100)


def unfinished(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.write(bytes(PREFIX.size))


def other_version(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(8)
        stream.write(struct.pack("<I", 7))


def flipped(file: Path) -> None:
    flip_byte(file, PREFIX.size + 5)


def longer(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"x")


DAMAGE: dict[Callable[[Path], None], str] = {
    cut_tensor: r"is incomplete: it has \d+ of \d+ bytes, without tensor second and what follows$",
    cut_header: r"is damaged or incomplete: it has 100 bytes, and its header ends behind them$",
    unfinished: r"is not a pack, or was not written to its end: pack the model again$",
    other_version: r"pack of version 7, not 1; move it away and make it anew with: smoe pack MODEL -o .*$",
    flipped: r"is damaged: the checksum of its header is another one$",
    longer: r"is incomplete: it has \d+ of \d+ bytes$",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda function: function.__name__)
def test_a_damaged_file_is_refused_in_one_line(damage: Callable[[Path], None], pack: Path) -> None:
    damage(pack / WEIGHTS_NAME)
    with pytest.raises(CheckpointError, match=DAMAGE[damage]):
        read_header(pack)


def test_another_layout_names_the_command_that_makes_the_pack_anew(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(headers.LAYOUTS, "none", 3)
    with pytest.raises(CheckpointError, match=rf"layout 1, not 3; .* smoe pack /models/a --dtype bfloat16 -o {pack}$"):
        read_header(pack)


def test_a_pack_in_int4_of_the_first_layout_is_made_anew_in_int4(pack: Path) -> None:
    file = pack / WEIGHTS_NAME
    change_fields(file, {"quantization": "int4", "layout": 1})
    flags = "--dtype bfloat16 --quantization int4"
    with pytest.raises(CheckpointError, match=rf"layout 1, not 2; .* smoe pack /models/a {flags} -o {pack}$"):
        read_header(pack)
    change_fields(file, {"quantization": "int8", "layout": 1})
    assert read_header(pack).quantization == "int8"


def test_a_config_of_another_network_is_refused(pack: Path) -> None:
    edit_config(pack, num_hidden_layers=4)
    config, _ = load_config(pack)
    with pytest.raises(CheckpointError, match=r"config\.json was changed: num_layers is 4, the pack has 5$"):
        checked_header(pack, config)


def test_a_flipped_byte_is_found_in_its_tensor(pack: Path) -> None:
    flip_byte(pack / WEIGHTS_NAME, (pack / WEIGHTS_NAME).stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"tensor second has another checksum than its header lists$"):
        verify_pack(pack, lambda done, total: None)


def test_a_bus_error_is_explained_by_what_is_left_of_the_file(pack: Path) -> None:
    assert "could not be read from the disk; find the damaged tensor with: smoe pack --check" in bus_error_reason(pack)
    cut_tensor(pack / WEIGHTS_NAME)
    assert bus_error_reason(pack).endswith("bytes: tensor second is lost")
    cut_header(pack / WEIGHTS_NAME)
    assert "its header ends behind them" in bus_error_reason(pack)


NETWORK = network_sizes(load_config(DEMO)[0])
HOSTILE: list[dict[str, Any]] = [
    {"tensors": 3},
    {"tensors": [["a", 4096, 8, "float32"]]},
    {"tensors": [["a", 1 << 60, 8, "float32", [2], ""]]},
    {"tensors": [["a", -4096, 8, "float32", [2], ""]]},
    {"tensors": [["a", 4096, 8, "float64", [1], ""]]},
    {"tensors": [["a", 4096, 8, "float32", [-2, -1], ""]], "file_bytes": 0},
    {"tensors": [["a", 4096.0, 8, "float32", [2], ""]]},
    {"tensors": [["a", 4096, 16, "float32", [-2, -2], ""]]},
    {"tensors": [["a", 4096, 8, "float32", [2.0], ""]]},
    {"tensors": [[["a"], 4096, 8, "float32", [2], ""]]},
    {"stored": [[["w"], "BF16", [3], 6]]},
    {"file_bytes": "long"},
    {"stored": [["w", "BF16", [], 2]]},
    {"stored": [["w", "BF16", [True, 3], 2]]},
    {"stored": [["w", "BF16", ["x", 3], 2]]},
    {"quantization": "fp8"},
    {"quantization": ["int4"]},
    {"quantization": None, "layout": None},
    {"dtype": ["bfloat16"]},
    {"network": None},
    {"network": {}},
    {"network": NETWORK | {"num_layers": "5"}},
    {"network": NETWORK | {"num_layers": 0}},
    {"network": NETWORK | {"num_layers": 1 << 62}},
    {"network": NETWORK | {"num_experts": -1}},
    {"network": NETWORK | {"num_experts": True}},
    {"network": NETWORK | {"dim": None}},
    {"matrices": []},
    {"source": 5},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=str)
def test_a_header_of_a_stranger_is_refused_in_one_line(changes: dict[str, Any], pack: Path) -> None:
    """Its checksum is right."""
    change_fields(pack / WEIGHTS_NAME, changes)
    with pytest.raises(CheckpointError, match=r"is damaged: its header is not that of a pack$"):
        read_header(pack)


@pytest.mark.parametrize("name", ["num_layers", "num_experts"])
def test_a_network_of_endless_size_is_refused_at_the_first_expert_that_is_missing(name: str, pack: Path) -> None:
    file = pack / WEIGHTS_NAME
    fields = json.loads(file.read_bytes()[PREFIX.size :].partition(bytes(1))[0])
    rewrite(file, json.dumps(fields | {"network": fields["network"] | {name: 1 << 61}}).encode())
    with pytest.raises(CheckpointError, match=r"tensor layers\.0\.experts\.0 is missing"):
        expert_tensors(read_header(pack))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000], ids=["cut", "list", "no text", "deep"])
def test_a_header_that_is_no_object_is_refused_in_one_line(content: bytes, pack: Path) -> None:
    with (pack / WEIGHTS_NAME).open("r+b") as stream:
        stream.truncate(1 << 20)
    rewrite(pack / WEIGHTS_NAME, content)
    with pytest.raises(CheckpointError, match=r"is damaged: its header is not that of a pack$"):
        read_header(pack)


def change_fields(file: Path, changes: dict[str, Any]) -> None:
    fields = json.loads(file.read_bytes()[PREFIX.size :].partition(bytes(1))[0])
    rewrite(file, json.dumps(fields | changes).encode())


def rewrite(file: Path, content: bytes) -> None:
    """Write another header, with its checksum."""
    with file.open("r+b") as stream:
        stream.write(PREFIX.pack(MAGIC, VERSION, len(content), hashlib.sha256(content).digest()) + content)
