"""Philox4x32-10 against its published answers, and the uniform numbers made of it."""

import numpy as np
import pytest

from model.ops.reference.philox import philox4x32, uniforms


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers published with the algorithm
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_philox_gives_its_published_answers(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    words = [np.array([value], dtype=np.uint64) for value in (*counter, *key)]
    got = philox4x32((words[0], words[1], words[2], words[3]), (words[4], words[5]))
    assert tuple(int(word[0]) for word in got) == expected


def test_seed_position_prompt_and_choice_each_change_the_draw() -> None:
    base = uniforms([1], [2], [3], [4])[0]
    for other in ([2], [2], [3], [4]), ([1], [3], [3], [4]), ([1], [2], [4], [4]), ([1], [2], [3], [5]):
        assert uniforms(*other)[0] != base


def test_uniforms_are_the_first_word_over_2_to_the_32() -> None:
    counter = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0)
    seed = (0x299F31D0 << 32) | 0xA4093822
    words = [np.array([value], dtype=np.uint64) for value in (*counter, 0xA4093822, 0x299F31D0)]
    first = int(philox4x32((words[0], words[1], words[2], words[3]), (words[4], words[5]))[0][0])
    [uniform] = uniforms([seed], [counter[0]], [counter[1]], [counter[2]])
    assert uniform == first / 2**32 and 0 <= uniform < 1


def test_negative_seeds_are_taken_modulo_2_to_the_64() -> None:
    assert uniforms([-1], [5], [0], [0]) == uniforms([2**64 - 1], [5], [0], [0])
