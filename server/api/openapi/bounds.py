"""Add bounds to request schemas: those that depend on the served model, and those of the strict JSON parser."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.strict_json import INT64_MAX, INT64_MIN

Schema = dict[str, Any]

_ID_FIELDS = frozenset({"allowed_token_ids", "input", "prompt", "stop_token_ids", "tokens"})
_LENGTH_FIELDS = frozenset({"max_completion_tokens", "max_output_tokens", "max_tokens", "min_tokens", "num_predict"})


@dataclass(frozen=True)
class Facts:
    """The served model's properties that bounds depend on. Zero: unknown while the model loads."""

    model_names: tuple[str, ...]
    vocab_size: int = 0
    max_model_len: int = 0
    num_experts: int = 0
    dim: int = 0


def bounded(schema: Mapping[str, Any], facts: Facts) -> Schema:
    """Return the schema of a request model or of a parameter with all bounds."""
    with_bounds: Schema = _add_bounds(dict(schema), facts, None)
    return with_bounds


def _add_bounds(schema: Any, facts: Facts, field: str | None) -> Any:
    """Return part of a schema with all bounds. `field`: the name of the field that it describes."""
    if isinstance(schema, list):
        return [_add_bounds(item, facts, field) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("in") == "path" and schema.get("name") == "model_id":
        return {**schema, "schema": {"enum": list(facts.model_names)}}
    walked = {key: item for key, item in schema.items() if key != "title" or not isinstance(item, str)}
    for key in ("anyOf", "oneOf", "allOf", "items", "additionalProperties", "propertyNames"):
        if key in walked:
            walked[key] = _add_bounds(walked[key], facts, field)
    if "properties" in walked:
        walked["properties"] = {name: _add_bounds(item, facts, name) for name, item in walked["properties"].items()}
    if "patternProperties" in walked:
        walked.setdefault("additionalProperties", False)
    if field == "model" and walked.get("type") == "string":
        return {"type": "string", "enum": list(facts.model_names)}
    is_bounded = walked.get("type") == "integer" and "const" not in walked
    return _with_limits(walked, facts, field) if is_bounded else walked


def _with_limits(schema: Schema, facts: Facts, field: str | None) -> Schema:
    lowest, highest = INT64_MIN, INT64_MAX
    if field in _ID_FIELDS:
        lowest, highest = 0, facts.vocab_size - 1 if facts.vocab_size else INT64_MAX
    if field in _LENGTH_FIELDS and facts.max_model_len:
        highest = facts.max_model_len
    if field == "dimensions" and facts.dim:
        highest = facts.dim
    if field == "experts_per_token" and facts.num_experts:
        highest = facts.num_experts
    return {"minimum": lowest, "maximum": highest, **schema}
