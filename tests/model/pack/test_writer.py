"""Tensors are written with their sums, each at the beginning of a page."""

import hashlib
from pathlib import Path

import torch

from model.checkpoint.config_file import load_config
from model.checkpoint.pack.header import PAGE_BYTES, header_space
from model.pack.writer import TensorWriter
from tests.support.paths import DEMO


def test_tensors_are_written_behind_the_header_at_pages(tmp_path: Path) -> None:
    config, _ = load_config(DEMO)
    numbers, parts = torch.arange(6.0).view(2, 3).bfloat16(), [torch.ones(5000).byte(), torch.zeros(1).byte()]
    with (tmp_path / "w").open("w+b") as stream:
        writer = TensorWriter(stream, config)
        writer.write("numbers", [numbers])
        writer.write("parts", parts)
        stream.flush()
        content = (tmp_path / "w").read_bytes()
    first, second = writer.tensors["numbers"], writer.tensors["parts"]
    start = header_space(config)
    assert (first.start, first.num_bytes, first.dtype, first.shape) == (start, 12, "bfloat16", (2, 3))
    assert (second.start, second.num_bytes, second.shape) == (start + PAGE_BYTES, 5001, (5001,))
    assert content[start : start + 12] == numbers.view(torch.uint8).numpy().tobytes()
    assert content[second.start : second.start + 5001] == bytes([1] * 5000 + [0])
    assert second.sha256 == hashlib.sha256(bytes([1] * 5000 + [0])).hexdigest()
    assert len(content) == writer.file_bytes and writer.file_bytes % PAGE_BYTES == 0
