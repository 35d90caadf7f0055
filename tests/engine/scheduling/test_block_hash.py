"""Block hashes: equal for equal prefixes, different for everything that K and V depend on."""

import pytest

from engine.scheduling.block_hash import child_hash, root_hash

ROOTS = [
    ("", None, None),
    ("a", None, None),
    ("\udcff", None, None),  # a lone surrogate, as JSON may carry it
    ("", 1, None),
    ("", 2, None),
    ("", 2, [[True, False]]),
    ("", 2, [[False, True]]),
    ("", 2, [[True], [False]]),
    ("", None, None, 0),
    ("", None, None, 1),
    ("", 1, None, 1),
    ("", None, None, None, "0a"),
    ("", None, None, None, "0b"),
    ("", None, None, 1, "0a"),
]


def test_roots_differ_by_salt_by_experts_per_token_by_mask_by_tenant_and_by_adapter() -> None:
    assert len({root_hash(*root) for root in ROOTS}) == len(ROOTS)


def test_a_salt_cannot_imitate_another_option() -> None:
    assert root_hash("", 2) != root_hash(repr((2, None, None, "")))
    assert root_hash("0a") != root_hash("", adapter="0a")


@pytest.mark.parametrize("changed", range(4))
def test_a_hash_depends_on_all_blocks_before_it(changed: int) -> None:
    blocks = [[1, 2], [3, 4], [5, 6], [7, 8]]
    other = [[9, 9] if index == changed else block for index, block in enumerate(blocks)]
    first, again, second = _chain(blocks), _chain(blocks), _chain(other)
    assert first == again
    assert first[:changed] == second[:changed]
    assert not set(first[changed:]) & set(second[changed:])


def _chain(blocks: list[list[int]]) -> list[bytes]:
    hashes = [root_hash("")]
    for block in blocks:
        hashes.append(child_hash(hashes[-1], block))
    return hashes[1:]
