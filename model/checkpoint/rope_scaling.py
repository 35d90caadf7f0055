"""Read how rotary angles are scaled for contexts beyond those of the first training. Imports no torch.

Every supported kind divides the frequency of each pair of a head's numbers by a constant, its divisor. YaRN also
multiplies the cosines and sines by one factor, which sharpens attention.
"""

import math
from typing import Any, NamedTuple

from model.checkpoint.config_fields import JsonFields
from model.checkpoint.json_files import printable
from model.checkpoint.yarn import FAST, SLOW, attention_scale, divisor, yarn_ramp
from model.config import ModelConfig

MIN_DIVISOR, MAX_DIVISOR = 1e-6, 1e6
MIN_FACTOR, MAX_FACTOR = 1e-3, 1e3  # of cos and sin
MAX_CONTEXT = 1 << 26
DIVISORS, FACTOR = "divisors", "attention_factor"  # the first is also the kind that packs have: a list of them
FIRST_CONTEXT = "original_max_position_embeddings"


class RopeScaling(NamedTuple):
    """Scaling of a network's rotary angles."""

    divisors: tuple[float, ...] = ()  # [K/2], of each pair's frequency; (): all are 1
    factor: float = 1.0  # of cos and sin


class RopeShape(NamedTuple):
    """Sizes of a network that the rules of scaling need."""

    head_dim: int
    theta: float
    context_len: int


UNSCALED = RopeScaling()


def rope_scaling(fields: JsonFields, shape: RopeShape, warnings: list[str]) -> RopeScaling:
    """Return the scaling that config.json asks for.

    Raises CheckpointError for a kind that is not supported, and if both spellings of the section differ.
    """
    sections = [rope for name in ("rope_parameters", "rope_scaling") if (rope := fields.section(name)) is not None]
    found = {_scaling(fields, rope, shape) for rope in sections} - {UNSCALED}
    if len(found) > 1:
        raise fields.error("rope_parameters and rope_scaling scale rotary angles differently")
    scaling = found.pop() if found else UNSCALED
    if not all(map(is_divisor, scaling.divisors)):
        raise fields.error(f"rotary angles are scaled by a divisor that is not {MIN_DIVISOR:g} to {MAX_DIVISOR:g}")
    if not MIN_FACTOR <= scaling.factor <= MAX_FACTOR:
        raise fields.error(f"{FACTOR} is {scaling.factor:g}, not {MIN_FACTOR:g} to {MAX_FACTOR:g}")
    warnings += dict.fromkeys(line for rope in sections for line in _remarks(fields, rope, shape))
    return scaling


def listed(config: ModelConfig) -> dict[str, Any]:
    """Return the section of config.json that gives a config its scaling again."""
    divisors = config.rope_divisors or (1.0,) * (config.head_dim // 2)
    return {"rope_type": DIVISORS, DIVISORS: list(divisors), FACTOR: config.rope_factor}


def unless_ones(divisors: tuple[float, ...]) -> tuple[float, ...]:
    """Return the divisors; () if they change nothing."""
    return divisors if set(divisors) != {1.0} else ()


def is_divisor(value: object) -> bool:
    """Return whether a value of a file can be a divisor."""
    return type(value) in (int, float) and MIN_DIVISOR <= value <= MAX_DIVISOR  # type: ignore[operator]


def _scaling(fields: JsonFields, rope: JsonFields, shape: RopeShape) -> RopeScaling:
    kind = _kind(rope)
    if kind in ("default", "dynamic"):
        return UNSCALED
    if kind == "linear":
        return RopeScaling(unless_ones((rope.positive_float("factor", MAX_DIVISOR),) * (shape.head_dim // 2)))
    if kind == "llama3":
        return RopeScaling(unless_ones(_by_wavelength(fields, rope, shape)))
    if kind == "yarn":
        return _yarn(fields, rope, shape)
    if kind == DIVISORS:
        return RopeScaling(unless_ones(_listed(rope, shape.head_dim)), _number(rope, FACTOR, MAX_FACTOR) or 1.0)
    raise rope.error(
        f"the rope type is {printable(kind)}; supported are 'default', 'dynamic', 'linear', 'llama3' and 'yarn'"
    )


def _kind(rope: JsonFields) -> object:
    return rope.get("rope_type", rope.get("type", "default"))


def _remarks(fields: JsonFields, rope: JsonFields, shape: RopeShape) -> list[str]:
    """Return what the operator should know about a section that is otherwise valid, one line each."""
    if _kind(rope) == "dynamic":
        return [
            f"config.json scales rotary angles by the length that a text has reached (dynamic), from token "
            f"{shape.context_len + 1} on; served is the context before it, {shape.context_len} tokens"
        ]
    if _kind(rope) == "yarn":
        length = round(_yarn_factor(fields, rope, shape) * _first_context(fields, rope, shape))
        if length != shape.context_len:
            return [
                f"config.json scales rotary angles for {length} tokens (yarn), but its max_position_embeddings, the "
                f"context that is served, is {shape.context_len}"
            ]
    return []


def _by_wavelength(fields: JsonFields, rope: JsonFields, shape: RopeShape) -> tuple[float, ...]:
    """Return Llama 3.1's divisors: 1 for pairs that turn often within the first context, the factor for pairs that turn
    seldom, and between them a share of each frequency that falls from 1 to 0."""
    factor = rope.positive_float("factor", MAX_DIVISOR)
    low = rope.positive_float("low_freq_factor", MAX_DIVISOR)
    high = rope.positive_float("high_freq_factor", MAX_DIVISOR)
    first_context = _first_context(fields, rope, shape)
    if low >= high:
        raise rope.error(f"{rope.described('low_freq_factor')}, not below high_freq_factor {high:g}")
    divisors = []
    for pair in range(shape.head_dim // 2):
        turns = first_context / (2 * math.pi * shape.theta ** (2 * pair / shape.head_dim))
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(divisor(factor, 1 - kept))
    return tuple(divisors)


def _yarn(fields: JsonFields, rope: JsonFields, shape: RopeShape) -> RopeScaling:
    """Return YaRN's scaling as transformers reads it."""
    for name in ("attn_factor", "extrapolation_factor"):  # of YaRN's first code, which no library reads any more
        if rope.get(name) not in (None, 1):
            raise rope.error(f"{rope.described(name)}; only 1 is supported")
    if shape.theta <= 1:
        raise rope.error(f"YaRN needs a base of the rotary angles above 1, not {shape.theta:g}")
    factor, first_context = _yarn_factor(fields, rope, shape), _first_context(fields, rope, shape)
    fast, slow = _number(rope, "beta_fast", MAX_DIVISOR) or FAST, _number(rope, "beta_slow", MAX_DIVISOR) or SLOW
    is_whole = rope.get("truncate") is None or rope.flag("truncate")
    ramp = yarn_ramp(shape.head_dim, shape.theta, first_context, fast, slow, is_whole=is_whole)
    width = ramp.end - ramp.start or 1e-3
    divisors = tuple(divisor(factor, ramp.slowed(pair, width)) for pair in range(shape.head_dim // 2))
    return RopeScaling(unless_ones(divisors), _attention_factor(rope, factor))


def _yarn_factor(fields: JsonFields, rope: JsonFields, shape: RopeShape) -> float:
    """Return the factor. null: by how much the context is longer than the first one, as transformers reads it."""
    if rope.get("factor", "absent") is None:
        return shape.context_len / _first_context(fields, rope, shape)
    return rope.positive_float("factor", MAX_DIVISOR)


def _first_context(fields: JsonFields, rope: JsonFields, shape: RopeShape) -> int:
    """Return the context of the first training. Outside the section it counts first; without one it is the context."""
    sources = (source for source in (fields, rope) if source.get(FIRST_CONTEXT) is not None)
    source = next(sources, None)
    return shape.context_len if source is None else source.positive(FIRST_CONTEXT, at_most=MAX_CONTEXT)


def _attention_factor(rope: JsonFields, factor: float) -> float:
    if rope.get(FACTOR) is not None:
        return rope.positive_float(FACTOR, MAX_FACTOR)
    above, below = _number(rope, "mscale", MAX_FACTOR), _number(rope, "mscale_all_dim", MAX_FACTOR)
    if above is None or below is None:
        return attention_scale(factor)
    return attention_scale(factor, above) / attention_scale(factor, below)


def _number(rope: JsonFields, name: str, at_most: float) -> float | None:
    """Return a number above 0; None if the key is absent, null or 0, which all mean that it is not set."""
    return None if rope.get(name) in (None, 0) else rope.positive_float(name, at_most)


def _listed(rope: JsonFields, head_dim: int) -> tuple[float, ...]:
    values = rope.get(DIVISORS)
    if not isinstance(values, list) or len(values) != head_dim // 2 or not all(map(is_divisor, values)):
        raise rope.error(
            f"{rope.described(DIVISORS)}, not {head_dim // 2} numbers of {MIN_DIVISOR:g} to {MAX_DIVISOR:g}"
        )
    return tuple(map(float, values))
