"""Random numbers without state: one uniform number per (seed, position, prompt, choice), by Philox4x32-10.

Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011). A draw depends on nothing else, so a request
samples the same tokens alone, in any batch, and after a preemption.
"""

import numpy as np
from numpy.typing import NDArray

U32 = NDArray[np.uint64]  # 32-bit values in 64-bit lanes, so that products do not overflow

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)


def philox4x32(counter: tuple[U32, U32, U32, U32], key: tuple[U32, U32]) -> tuple[U32, U32, U32, U32]:
    """Run ten rounds over arrays of counters and keys, all of shape [N]; return four words, [N] each."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (p1 >> SHIFT) ^ c1 ^ k0, p1 & MASK, (p0 >> SHIFT) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + np.uint64(WEYL[0])) & MASK, (k1 + np.uint64(WEYL[1])) & MASK
    return c0, c1, c2, c3


def uniforms(seeds: list[int], positions: list[int], prompts: list[int], choices: list[int]) -> NDArray[np.float64]:
    """Return a number in [0, 1) per row: key = seed (64 bits), counter = (position, prompt index, choice index, 0)."""
    seed = np.array([value & 0xFFFFFFFFFFFFFFFF for value in seeds], dtype=np.uint64)
    words = [np.array(column, dtype=np.uint64) for column in (positions, prompts, choices)]
    counter = (words[0], words[1], words[2], np.zeros_like(seed))
    first, *_ = philox4x32(counter, (seed & MASK, seed >> SHIFT))
    return first.astype(np.float64) * 2.0**-32
