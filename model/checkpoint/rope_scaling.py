"""Read how rotary angles are scaled for contexts beyond those of the first training. Imports no torch.

Every supported kind divides the frequency of each pair of a head's numbers by a constant, its divisor.
"""

import math

from model.checkpoint.config_fields import JsonFields
from model.checkpoint.json_files import printable

MIN_DIVISOR, MAX_DIVISOR = 1e-6, 1e6
DIVISORS = "divisors"  # the kind that packs have: a list of them


def rope_divisors(fields: JsonFields, head_dim: int, theta: float) -> tuple[float, ...]:
    """Return the divisor of each pair, [K/2]; () if angles are not scaled.

    Raises CheckpointError for a kind that is not supported, and if both spellings of the section differ.
    """
    sections = (fields.section(name) for name in ("rope_parameters", "rope_scaling"))
    found = {_divisors(rope, head_dim, theta) for rope in sections if rope is not None} - {()}
    if len(found) > 1:
        raise fields.error("rope_parameters and rope_scaling scale rotary angles differently")
    divisors = found.pop() if found else ()
    if not all(map(is_divisor, divisors)):
        raise fields.error(f"rotary angles are scaled by a divisor that is not {MIN_DIVISOR:g} to {MAX_DIVISOR:g}")
    return divisors if set(divisors) != {1.0} else ()


def _divisors(rope: JsonFields, head_dim: int, theta: float) -> tuple[float, ...]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return ()
    if kind == "linear":
        return (rope.positive_float("factor", MAX_DIVISOR),) * (head_dim // 2)
    if kind == "llama3":
        return _by_wavelength(rope, head_dim, theta)
    if kind == DIVISORS:
        return _listed(rope, head_dim)
    raise rope.error(f"the rope type is {printable(kind)}; supported are 'default', 'linear' and 'llama3'")


def _by_wavelength(rope: JsonFields, head_dim: int, theta: float) -> tuple[float, ...]:
    """Return Llama 3.1's divisors: 1 for pairs that turn often within the first context, the factor for pairs that turn
    seldom, and between them a share of each frequency that falls from 1 to 0."""
    factor = rope.positive_float("factor", MAX_DIVISOR)
    low = rope.positive_float("low_freq_factor", MAX_DIVISOR)
    high = rope.positive_float("high_freq_factor", MAX_DIVISOR)
    first_context = rope.positive("original_max_position_embeddings", at_most=1 << 26)
    if low >= high:
        raise rope.error(f"{rope.described('low_freq_factor')}, not below high_freq_factor {high:g}")
    divisors = []
    for pair in range(head_dim // 2):
        turns = first_context / (2 * math.pi * theta ** (2 * pair / head_dim))
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - kept) / factor + kept))
    return tuple(divisors)


def _listed(rope: JsonFields, head_dim: int) -> tuple[float, ...]:
    values = rope.get(DIVISORS)
    if not isinstance(values, list) or len(values) != head_dim // 2 or not all(map(is_divisor, values)):
        raise rope.error(
            f"{rope.described(DIVISORS)}, not {head_dim // 2} numbers of {MIN_DIVISOR:g} to {MAX_DIVISOR:g}"
        )
    return tuple(map(float, values))


def is_divisor(value: object) -> bool:
    """Return whether a value of a file can be a divisor."""
    return type(value) in (int, float) and MIN_DIVISOR <= value <= MAX_DIVISOR  # type: ignore[operator]
