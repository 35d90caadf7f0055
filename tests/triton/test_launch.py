"""Block counts, powers of two, and launches of empty grids."""

from typing import Any

import pytest

from model.ops.triton.launch import (
    blocks,
    launch_early,
    launch_on_device,
    launcher_for,
    options_of,
    power_of_two,
)


@pytest.mark.parametrize(("size", "block", "count"), [(0, 16, 0), (1, 16, 1), (16, 16, 1), (17, 16, 2), (5, 1, 5)])
def test_blocks_cover_the_size(size: int, block: int, count: int) -> None:
    assert blocks(size, block) == count


def test_power_of_two_is_the_next_one_and_at_least_the_least() -> None:
    assert [power_of_two(size) for size in (1, 2, 3, 48, 64, 65)] == [1, 2, 4, 64, 64, 128]
    assert power_of_two(3, least=16) == 16


def test_an_empty_grid_launches_nothing_and_multiply_adds_are_not_fused() -> None:
    launches: list[Any] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments, **options: launches.append((grid, arguments, options))

    launch_on_device(Kernel(), (3, 0), 1, num_warps=4)
    assert launches == []
    launch_on_device(Kernel(), (3, 2), 1, num_warps=4)
    assert launches == [((3, 2), (1,), {"num_warps": 4, "enable_fp_fusion": False})]


def test_from_hopper_on_a_kernel_may_start_before_the_one_before_it_has_ended() -> None:
    launchers = {arch: launcher_for(arch) for arch in (80, 89, 90, 120)}
    assert [launch is launch_early for launch in launchers.values()] == [False, False, True, True]
    assert launcher_for(90, early=False) is launch_on_device
    launches: list[Any] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments, **options: launches.append(options)

    launch_early(Kernel(), (1, 0))
    launch_early(Kernel(), (1,), num_warps=4)
    assert launches == [{"num_warps": 4, **options_of(launch_early)}]
    assert options_of(launch_early) == {"enable_fp_fusion": False, "EARLY": True, "launch_pdl": True}
    assert options_of(launch_on_device) == {"enable_fp_fusion": False}
