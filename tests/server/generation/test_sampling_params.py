"""server/generation/sampling_params.py: parameters, the checkpoint's defaults, ids outside the vocabulary."""

import pytest

from engine.token_constraints import token_constraints
from server.errors import ApiError
from server.generation.generation_defaults import GenerationDefaults
from server.generation.sampling_params import check_token_ids, packed_constraints, sampling_params
from server.schemas import (
    CompletionRequest,
    validate,
)
from server.strict_json import JsonValue

PROMPT: dict[str, JsonValue] = {"model": "m", "prompt": "x"}

ABOVE, BELOW = "integer_above_max_value", "integer_below_min_value"


def test_every_sampling_field_reaches_the_engine() -> None:
    fields: dict[str, JsonValue] = {
        "min_tokens": 2, "temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "frequency_penalty": 0.2,
        "presence_penalty": 0.3, "repetition_penalty": 1.1, "logit_bias": {"5": -3}, "allowed_token_ids": [9, 5, 9],
        "stop_token_ids": [4], "ignore_eos": True, "logprobs": 3, "echo": True,
    }  # fmt: skip
    request = validate(CompletionRequest, {**PROMPT, **fields})
    constraints = packed_constraints(request, bad_words=[(3, 4)])
    assert constraints == token_constraints(logit_bias={5: -3.0}, allowed_token_ids=[5, 9], bad_words=[(3, 4)])
    params = sampling_params(
        request,
        max_tokens=12,
        seed=-1,
        prompt_index=2,
        choice_index=1,
        defaults=GenerationDefaults(),
        constraints=constraints,
    )
    expected = {key: value for key, value in fields.items() if key not in {"logprobs", "echo"}}
    expected = {key: value for key, value in expected.items() if key not in {"logit_bias", "allowed_token_ids"}}
    expected |= {"stop_token_ids": (4,), "num_logprobs": 3, "constraints": constraints}
    expected |= {"max_tokens": 12, "seed": -1, "prompt_index": 2, "choice_index": 1, "prompt_logprobs": True}
    assert {key: getattr(params, key) for key in expected} == expected


def test_a_repetition_penalty_has_llama_cpps_name_too() -> None:
    bodies: list[dict[str, JsonValue]] = [{"repeat_penalty": 1.3}, {"repeat_penalty": 1.3, "repetition_penalty": 1.3}]
    for body in bodies:
        request = validate(CompletionRequest, {**PROMPT, **body})
        params = sampling_params(
            request, max_tokens=1, seed=0, prompt_index=0, choice_index=0, defaults=GenerationDefaults()
        )
        assert params.repetition_penalty == 1.3


@pytest.mark.parametrize(
    ("fields", "seed"),
    [({}, None), ({"seed": -1}, None), ({"seed": -2}, -2), ({"seed": 0}, 0), ({"random_seed": 7}, 7)],
)
def test_a_seed_has_mistrals_name_too_and_minus_one_is_none(fields: dict[str, JsonValue], seed: int | None) -> None:
    assert validate(CompletionRequest, {**PROMPT, **fields}).chosen_seed == seed
    again = {**fields, "seed": seed, "random_seed": seed}
    assert validate(CompletionRequest, {**PROMPT, **again}).chosen_seed == seed


def test_two_seeds_that_differ_are_refused() -> None:
    with pytest.raises(ApiError, match="Send only one of 'seed' and 'random_seed'"):
        validate(CompletionRequest, {**PROMPT, "seed": 1, "random_seed": 2})


def test_extreme_values_become_harmless_ones() -> None:
    extreme: dict[str, JsonValue] = {"repetition_penalty": 1e-320, "top_k": 2**62}
    request = validate(CompletionRequest, {**PROMPT, **extreme})
    params = sampling_params(
        request, max_tokens=1, seed=0, prompt_index=0, choice_index=0, defaults=GenerationDefaults()
    )
    assert params.repetition_penalty >= 1e-3
    assert params.top_k < 2**31


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"prompt": [100]}, "prompt", ABOVE),
        ({"prompt": [[1], [-1]]}, "prompt", BELOW),
        ({"logit_bias": {"100": 1}}, "logit_bias", ABOVE),
        ({"stop_token_ids": [-1]}, "stop_token_ids", BELOW),
        ({"allowed_token_ids": [100]}, "allowed_token_ids", ABOVE),
        ({"allowed_token_ids": [2, 7], "stop_token_ids": [7], "min_tokens": 1}, "allowed_token_ids", "invalid_value"),
    ],
    ids=str,
)
def test_ids_outside_the_vocabulary_are_refused(extra: dict[str, JsonValue], param: str, code: str) -> None:
    request = validate(CompletionRequest, {**PROMPT, **extra})
    with pytest.raises(ApiError) as caught:
        check_token_ids(request, 100, eos_ids=(2,))
    assert (caught.value.param, caught.value.code) == (param, code)


def test_ids_inside_the_vocabulary_pass() -> None:
    fields: dict[str, JsonValue] = {
        "prompt": [0, 99],
        "logit_bias": {"99": 1},
        "allowed_token_ids": [2],
        "stop_token_ids": [99],
    }
    check_token_ids(validate(CompletionRequest, {**PROMPT, **fields}), 100, eos_ids=(2,))
