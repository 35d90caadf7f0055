"""Default values of sampling fields: which fields have one, and which values it may have."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BeforeValidator

MAX_TOP_K = 2**31 - 1
RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "temperature": (0.0, 2.0),
        "top_p": (1e-9, 1.0),
        "top_k": (-1, MAX_TOP_K),
        "min_p": (0.0, 1.0),
        "repetition_penalty": (1e-9, 2.0),
    }
)
INTEGERS = frozenset({"top_k"})


def check_default(name: str, value: object) -> float:
    """Return the value of a field of RANGES. Raises ValueError for one that a request could not have either."""
    low, high = RANGES[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}")
    if name in INTEGERS and value != int(value):  # type: ignore[call-overload]
        raise ValueError(f"{name} must be an integer")
    return value  # type: ignore[return-value]


def read_overrides(value: object) -> dict[str, float]:
    """Return the fields in a JSON object, or in a mapping of a configuration file. Raises ValueError."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, Mapping):
        raise ValueError('should be a JSON object such as {"temperature": 0.7}')
    for name in value:
        if name not in RANGES:
            raise ValueError(f"has a field that is none of {', '.join(RANGES)}")
    return {name: check_default(name, number) for name, number in value.items()}


SamplingDefaults = Annotated[dict[str, Any], BeforeValidator(read_overrides)]
