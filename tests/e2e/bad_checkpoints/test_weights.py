"""Invalid weight files, and those of another model."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.e2e.bad_checkpoints.start import (
    CONFIG,
    GENERATION,
    INDEX,
    TOKENIZER,
    TOKENIZER_CONFIG,
    W1,
    WEIGHTS,
    refusal,
    rewrite,
    start,
)


def test_the_unchanged_checkpoint_starts(good: Path) -> None:
    start(good)


def file_of(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """Build a safetensors file with this header; `length` overrides the header's length field."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(content) if length is None else length).to_bytes(8, "little") + content + body


def entry(start: Any, end: Any, shape: Any = (1,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


FOUR = b"\0" * 4
MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"\x01" * 7,
    "zeros": b"\0" * 4096,
    "no header": file_of(b""),
    "header's length beyond the file": file_of({}, length=1000),
    "header's length beyond all files": file_of({}, length=2**63),
    "header's length one short": file_of({"a": entry(0, 4)}, FOUR, length=len(json.dumps({"a": entry(0, 4)})) - 1),
    "header cut off": file_of({"a": entry(0, 4)})[:20],
    "header is not JSON": file_of(b"{hello"),
    "header is a list": file_of([]),
    "header is not UTF-8": file_of(b'{"\xff":{}}'),
    "header with NaN": file_of(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', FOUR),
    "a name twice": file_of(b'{"a":%b,"a":%b}' % ((json.dumps(entry(0, 4)).encode(),) * 2), FOUR),
    "unknown dtype": file_of({"a": entry(0, 4, dtype="X9")}, FOUR),
    "no offsets": file_of({"a": {"dtype": "F32", "shape": [1]}}, FOUR),
    "offsets reversed": file_of({"a": entry(4, 0)}, FOUR),
    "offsets negative": file_of({"a": entry(-4, 0)}, FOUR),
    "fractional offsets": file_of({"a": entry(0.5, 4.5)}, FOUR),
    "offsets beyond the file": file_of({"a": entry(0, 8, [2])}, FOUR),
    "offsets that overlap": file_of({"a": entry(0, 4), "b": entry(2, 6)}, FOUR),
    "a gap": file_of({"a": entry(0, 4), "b": entry(8, 12)}, FOUR * 3),
    "bytes at the end": file_of({"a": entry(0, 4)}, FOUR * 2),
    "shape unlike its bytes": file_of({"a": entry(0, 4, [2])}, FOUR),
    "shape negative": file_of({"a": entry(0, 4, [-1])}, FOUR),
    "shape of strings": file_of({"a": entry(0, 4, ["1"])}, FOUR),
    "shape that overflows": file_of({"a": entry(0, 4, [2**32, 2**32, 4])}, FOUR),
    "metadata with a number": file_of({"__metadata__": {"a": 5}, "a": entry(0, 4)}, FOUR),
    "GGUF": b"GGUF\x03\0\0\0" + b"\0" * 100,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_weight_file_is_named(name: str, checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).write_bytes(MALFORMED[name])
    line = refusal(checkpoint)
    assert line.startswith(str(checkpoint / WEIGHTS)) or "is missing" in line, line


FOREIGN: dict[str, tuple[bytes, str]] = {
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
    "HTML": (b"<!DOCTYPE html><html>404</html>", "HTML"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("file", [WEIGHTS, CONFIG, GENERATION, INDEX, TOKENIZER, TOKENIZER_CONFIG])
def test_a_web_page_or_a_pointer_in_place_of_a_file_is_named(name: str, file: str, checkpoint: Path) -> None:
    content, part = FOREIGN[name]
    if file == INDEX:
        (checkpoint / WEIGHTS).unlink()  # which would come before it
    (checkpoint / file).write_bytes(content)
    line = refusal(checkpoint)
    assert file in line and part in line, line


@pytest.mark.parametrize(
    "content", [pickle.dumps({"a": [1.0]}), b"PK\x03\x04" + b"\0" * 99, pickle.dumps({"a": [1.0]}, protocol=0)]
)
def test_pickled_weights_are_never_opened(content: bytes, checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).write_bytes(content)
    assert WEIGHTS in refusal(checkpoint)
    (checkpoint / WEIGHTS).rename(checkpoint / "pytorch_model.bin")
    assert "pytorch_model.bin' holds pickled weights" in refusal(checkpoint)


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (lambda t: t.pop(W1), f"tensor {re.escape(W1)} is missing"),
    "transposed": (lambda t: t.update({W1: t[W1].T.contiguous()}), r"\[32, 48\].*\[48, 32\]"),
    "integers": (lambda t: t.update({W1: t[W1].to(torch.int8)}), "dtype I8"),
    "one more": (lambda t: t.update({"x": torch.zeros(1)}), "'x' does not belong"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_does_not_fit_is_named(name: str, checkpoint: Path) -> None:
    change, pattern = TENSORS[name]
    rewrite(checkpoint, change)
    assert re.search(pattern, refusal(checkpoint))


def test_shards_missing_cut_or_doubled_are_named(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / WEIGHTS)
    (checkpoint / WEIGHTS).unlink()
    first, second = checkpoint / "a.safetensors", checkpoint / "b.safetensors"
    half = len(tensors) // 2
    shards = {first: dict(list(tensors.items())[:half]), second: dict(list(tensors.items())[half:])}
    for file, shard in shards.items():
        save_file(shard, file)
    weight_map = {name: file.name for file, shard in shards.items() for name in shard}
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    start(checkpoint)
    content = second.read_bytes()
    second.write_bytes(content[:-1])
    assert "b.safetensors is damaged" in refusal(checkpoint)
    second.unlink()
    assert "b.safetensors is missing, though" in refusal(checkpoint)
    first.rename(second)
    first.write_bytes(content)
    assert "lists tensor" in refusal(checkpoint)
    save_file(tensors, first)
    assert re.search(r"is in .*a\.safetensors and again in .*b\.safetensors", refusal(checkpoint))
