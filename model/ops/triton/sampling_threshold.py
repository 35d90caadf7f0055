"""The threshold of top_k and top_p: the key above which the kept tokens lie.

A key is a logit as an integer in the same order. The search halves an interval of logits, with a pass over the
vocabulary for each cut, until at most CANDIDATES tokens are left in it. Their logits are gathered, and the rest of the
search works on them in registers. It finds the same threshold whatever the cuts. (Pivots instead of sorting:
arXiv 2602.01518.)

A row's `distribution` is a tuple: pointer to its logits [V], the largest of them, 1 / temperature (float64), min_p
(float64), V. A `cut` is a tuple: a key, the number of tokens at or above it, the sum of their unnormalized probs.
"""

import triton
import triton.language as tl

# mypy: disable-error-code="untyped-decorator"


@triton.jit
def sort_keys(logits: tl.tensor) -> tl.tensor:
    """Map float32 to integers 0 .. 2^32 - 1 in the same order; -0.0 and 0.0 are equal."""
    bits = (logits + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648


@triton.jit
def key_value(key: tl.tensor) -> tl.tensor:
    """Return the float32 that has this key."""
    bits = (key - 2147483648).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def unnormalized_probs(logits: tl.tensor, distribution: tl.tensor) -> tl.tensor:
    """Return probabilities divided by the largest one; those below min_p become 0."""
    _, largest, inverse_temperature, min_p, _ = distribution
    probs = tl.exp((logits.to(tl.float64) - largest.to(tl.float64)) * inverse_temperature)
    return tl.where(probs >= min_p, probs, 0.0)


@triton.jit
def count_and_sum(
    distribution: tl.tensor, threshold: tl.tensor, BLOCK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the number of tokens with a key of at least `threshold`, and the sums of their unnormalized probs and of
    all."""
    row, _, _, _, vocab_size = distribution
    count = tl.zeros((BLOCK,), dtype=tl.int32)
    mass, total = tl.zeros((BLOCK,), dtype=tl.float64), tl.zeros((BLOCK,), dtype=tl.float64)
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        logits = tl.load(row + ids, mask=ids < vocab_size, other=float("-inf"))
        above = (sort_keys(logits) >= threshold) & (ids < vocab_size)
        probs = unnormalized_probs(logits, distribution)
        count += above.to(tl.int32)
        mass += tl.where(above, probs, 0.0)
        total += tl.where(ids < vocab_size, probs, 0.0)
    return tl.sum(count), tl.sum(mass), tl.sum(total)


@triton.jit
def first_cut(distribution: tl.tensor, BLOCK: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return the three parts of the cut at the logit 8 temperatures below the largest (e^-8 of its probability), and
    the sum of all unnormalized probs."""
    _, largest, inverse_temperature, _, _ = distribution
    distance = (8.0 * (1.0 / inverse_temperature)).to(tl.float32)
    key = tl.minimum(tl.maximum(sort_keys(largest - distance), 1), sort_keys(largest))
    count, mass, total = count_and_sum(distribution, key, BLOCK)
    return key, count, mass, total


@triton.jit
def find_threshold(
    distribution: tl.tensor,
    goal: tl.tensor,
    cut: tl.tensor,
    scratch: tl.tensor,
    BY_MASS: tl.constexpr,
    BLOCK: tl.constexpr,
    CANDIDATES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Find the largest key at or above which there are `goal` tokens, or (BY_MASS) probabilities that sum to `goal`.

    The search begins at `cut`. `scratch`: CANDIDATES numbers of the program's own. Returns the key, the number of
    tokens above it and the sum of their unnormalized probs, and the number of tokens equal to it.
    """
    low, high, low_count, count, mass = narrow(distribution, goal, cut, BY_MASS, BLOCK, CANDIDATES)
    ties = low_count - count
    if high - low > 1:
        gather(distribution, low, high, scratch, BLOCK)
        index = tl.arange(0, CANDIDATES)
        logits = tl.load(scratch + index, mask=index < ties, other=float("-inf"))
        keys = tl.where(index < ties, sort_keys(logits), -1)
        probs = tl.where(index < ties, unnormalized_probs(logits, distribution), 0.0)
        while high - low > 1:
            middle = (low + high) // 2
            if BY_MASS:
                is_low = mass + tl.sum(tl.where(keys >= middle, probs, 0.0)) >= goal
            else:
                is_low = count + tl.sum((keys >= middle).to(tl.int32)) >= goal
            low, high = tl.where(is_low, middle, low), tl.where(is_low, high, middle)
        count += tl.sum((keys > low).to(tl.int32))
        mass += tl.sum(tl.where(keys > low, probs, 0.0))
        ties = tl.sum((keys == low).to(tl.int32))
    return low, count, mass, ties


@triton.jit
def narrow(
    distribution: tl.tensor,
    goal: tl.tensor,
    cut: tl.tensor,
    BY_MASS: tl.constexpr,
    BLOCK: tl.constexpr,
    CANDIDATES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Cut the interval low .. high - 1 of keys, which holds the threshold, until few tokens or one key are left in it.

    Returns low and high, the numbers of tokens at or above each, and the sum of the probs at or above high.
    """
    largest, vocab_size = distribution[1], distribution[4]
    key, count, mass = cut
    low, high = tl.full((), 0, dtype=tl.int64), sort_keys(largest) + 1
    high_count = tl.full((), 0, dtype=tl.int32)
    low_count = high_count + vocab_size
    high_mass = tl.full((), 0.0, dtype=tl.float64)
    num_cuts = tl.full((), 0, dtype=tl.int32)
    distance = largest - key_value(key)
    while (low_count - high_count > CANDIDATES) & (high - low > 1):
        if num_cuts > 0:
            count, mass, _ = count_and_sum(distribution, key, BLOCK)
        is_low = (mass >= goal) if BY_MASS else (count >= goal)
        low, low_count = tl.where(is_low, key, low), tl.where(is_low, count, low_count)
        high, high_count = tl.where(is_low, high, key), tl.where(is_low, high_count, count)
        high_mass = tl.where(is_low, high_mass, mass)
        distance *= 4.0
        middle = tl.where(low > 0, 0.5 * key_value(low) + 0.5 * key_value(high), largest - distance)
        key = tl.minimum(tl.maximum(sort_keys(middle), low + 1), high - 1)
        key = tl.where(num_cuts < 12, key, (low + high) // 2)  # halves of keys end after 32 more
        num_cuts += 1
    return low, high, low_count, high_count, high_mass


@triton.jit
def gather(distribution: tl.tensor, low: tl.tensor, high: tl.tensor, scratch: tl.tensor, BLOCK: tl.constexpr) -> None:
    """Write the logits with keys low .. high - 1 to the program's scratch, by ascending id."""
    row, _, _, _, vocab_size = distribution
    done = tl.full((), 0, dtype=tl.int32)
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        logits = tl.load(row + ids, mask=ids < vocab_size, other=float("-inf"))
        keys = sort_keys(logits)
        chosen = ((keys >= low) & (keys < high) & (ids < vocab_size)).to(tl.int32)
        tl.store(scratch + done + tl.cumsum(chosen) - chosen, logits, mask=chosen != 0)
        done += tl.sum(chosen)
    tl.debug_barrier()  # other threads of the program read what these wrote
