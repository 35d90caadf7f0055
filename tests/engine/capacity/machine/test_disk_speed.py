"""The disk's speed is that of a sample of the pack's experts."""

from itertools import chain, repeat
from pathlib import Path

import pytest

from engine.capacity.machine.disk_speed import NUM_READERS, PIECE_BYTES, DiskSample, disk_rate, disk_sample
from engine.errors import EngineConfigError
from model.checkpoint.pack.experts import expert_tensors
from model.checkpoint.pack.header import WEIGHTS_NAME, read_header
from tests.support.checkpoints.packs import make_pack
from tests.support.paths import DEMO


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pack(DEMO, tmp_path_factory.mktemp("packs") / "p", quantization="int8")


class Clock:
    """Clock that stands at 0 until the reads begin, and then at `later_s`."""

    def __init__(self, later_s: float) -> None:
        self._times_s = chain([0.0], repeat(later_s))

    def __call__(self) -> float:
        return next(self._times_s)


def test_the_rate_is_the_bytes_of_the_sample_by_the_seconds_of_the_clock(packed: Path) -> None:
    """Experts of the demo are smaller than a piece: each read goes on to the end of the piece, or of the file."""
    end = read_header(packed).file_bytes
    starts = [tensor.start for layer in expert_tensors(read_header(packed)).layers for tensor in layer]
    sample = disk_sample(packed, limit_s=10.0, clock=Clock(4.0))
    assert sample == DiskSample(sum(min(PIECE_BYTES, end - start) for start in starts), 4.0)
    assert sample.rate == sample.num_bytes / 4.0
    assert disk_sample(packed, 3 * PIECE_BYTES, limit_s=10.0, clock=Clock(1.0)).num_bytes <= 3 * PIECE_BYTES


def test_no_read_begins_after_the_time_is_over(packed: Path) -> None:
    """Only those do that begin before the first one ends: one for each thread."""
    assert 0 < disk_sample(packed, limit_s=0.5, clock=Clock(1.0)).num_bytes <= NUM_READERS * PIECE_BYTES


def test_a_damaged_pack_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_NAME).write_bytes(b"x")
    with pytest.raises(EngineConfigError, match="is not a pack"):
        disk_rate(tmp_path)
