"""Block arithmetic against counting positions one by one."""

import pytest

from engine.scheduling.blocks.geometry import BlockGeometry

WINDOWS = [None, 1, 2, 3, 16, 17, 40]


@pytest.mark.parametrize(
    ("window", "tokens", "chunk", "expected"),
    [(None, 2000, 512, 125), (256, 2000, 512, 17 + 32), (256, 100, 512, 7), (3, 50, 1, 2 + 1), (16, 1000, 16, 2 + 1)],
)
def test_peak_blocks_are_those_of_the_window_and_the_chunk(
    window: int | None, tokens: int, chunk: int, expected: int
) -> None:
    assert BlockGeometry(16, window, chunk).peak_blocks(tokens) == expected


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_the_first_visible_block_has_the_first_position_in_the_window(window: int | None, block_size: int) -> None:
    geometry = BlockGeometry(block_size, window, max_chunk=1)
    for position in range(100):
        visible = [p for p in range(position + 1) if window is None or position - p < window]
        assert geometry.first_visible_block(position) == visible[0] // block_size


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_a_decoding_sequence_never_holds_more_than_its_decoding_blocks(window: int | None, block_size: int) -> None:
    geometry = BlockGeometry(block_size, window, max_chunk=1)
    most = 0
    for position in range(100):
        most = max(most, position // block_size - geometry.first_visible_block(position) + 1)
        assert most <= geometry.decoding_blocks(position + 1) <= most + 1  # + 1: for any offset of window to block
        assert geometry.decoding_blocks(position + 1) <= geometry.peak_blocks(position + 1)


def test_the_longest_servable_sequence_fills_the_pool_unless_a_window_bounds_it() -> None:
    assert BlockGeometry(16, None, 512).max_servable_tokens(10) == 160
    assert BlockGeometry(16, 32, 512).max_servable_tokens(2) == 32  # the window needs 3 blocks
    assert BlockGeometry(16, 32, 512).max_servable_tokens(3) is None
