"""The server follows its OpenAPI description: for random valid requests, random invalid ones, and NULs in both.

schemathesis makes the requests. `refusable` decides from a request's body about rules that a schema cannot express:
fields that depend on each other, and the number of tokens of a text.
"""

import json
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from server.api.app import ROUTES
from server.api.openapi import Facts, document
from server.api.openapi.document import REQUEST_MODELS
from tests.support.servers.running import RunningServer

MAX_MODEL_LEN, VOCAB = 2048, 3072
MAX_CHOICES_QUEUED = 256
NUM_TOKENS = 3  # limit of generated tokens, so that a thousand requests take minutes
OLLAMA, OLLAMA_OPTIONS = ("/api/chat", "/api/generate"), "options of /api"
LENGTHS = {
    "/v1/completions": "max_tokens",
    "/v1/chat/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
    "/v1/messages": "max_tokens",
    OLLAMA_OPTIONS: "num_predict",
}
CONFORMANCE = [response_schema_conformance, content_type_conformance]
DEPENDENT = {
    "expert_mask",
    "tools",
    "tool_choice",
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "json_schema",
    "grammar",
    "regex",
    "ebnf",
    "output_config",
    "format",
    "text",
    "parallel_tool_calls",
}
SEPARATE = DEPENDENT | {  # fields that depend on others
    "stream_options",
    "top_logprobs",
    "best_of",
    "prompt_logprobs",
    "min_tokens",
    "max_completion_tokens",
    "logit_bias",
    "continue_final_message",
    "bad_words",
    "allowed_token_ids",
}
TOOL_WORDS = ("function_call", "function_call_output", "tool", "tool_calls", "tool_result", "tool_use")
LEFT_OUT_WORDS = ("thinking", "redacted_thinking", "reasoning")  # a conversation of nothing else has no messages
CALL_WORDS = ("custom_tool_call", "custom_tool_call_output", "prefix")  # depend on other messages
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
OPERATIONS = {
    (method.upper(), path): operation
    for path, operations in document(ROUTES, Facts(()), "1")["paths"].items()
    for method, operation in operations.items()
    if not path.startswith(("/v1/files", "/v1/batches"))  # 404 without --batch-dir
    and not path.endswith("_lora_adapter")  # 404 without --enable-runtime-lora
}
CASES = [
    (method, path, mode)
    for (method, path), operation in OPERATIONS.items()
    for mode in (POSITIVE, NEGATIVE)
    if mode is POSITIVE or operation.keys() & {"requestBody", "parameters"}  # other requests cannot be invalid
]


def spelled_as_integers(value: Any) -> Any:
    """Replace 3.0, which is an integer in JSON Schema, by 3, which this server requires."""
    if isinstance(value, list):
        return [spelled_as_integers(item) for item in value]
    if isinstance(value, dict):
        return {name: spelled_as_integers(item) for name, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else value


def shortened(path: str, body: Any) -> Any:
    """Return a request with less work. Valid requests stay valid, invalid ones invalid."""
    if not isinstance(body, dict):
        return body
    body = dict(body)
    for timeout in ("timeout_s", "queue_timeout_s"):
        if type(body.get(timeout)) in (int, float) and 0 < body[timeout] < 600:
            body[timeout] = 600
    if path in OLLAMA and isinstance(body.get("options") or {}, dict):
        body["options"] = shortened(OLLAMA_OPTIONS, body.get("options") or {})
    if path not in LENGTHS:
        return body
    name = LENGTHS[path]
    if body.get(name) is None or (type(body[name]) is int and NUM_TOKENS < body[name] <= MAX_MODEL_LEN):
        body[name] = NUM_TOKENS
    if type(body.get("min_tokens")) is int and NUM_TOKENS < body["min_tokens"] <= MAX_MODEL_LEN:
        body["min_tokens"] = NUM_TOKENS
    return body


def without_dependencies(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the request without fields that depend on others."""
    rest = {name: value for name, value in body.items() if name not in SEPARATE}
    if path in LENGTHS and rest.get(LENGTHS[path]) == 0:
        rest[LENGTHS[path]] = NUM_TOKENS
    return rest


def refusable(path: str, sent: dict[str, Any], known: set[str]) -> bool:
    """Return whether a body that fits its schema may be refused by a rule that the description states in words."""
    if has_long_integer(sent):
        return True
    body = {name: value for name, value in sent.items() if name in known}
    limit = body.get(LENGTHS.get(path, ""))
    rules = [
        len(json.dumps(body)) + 16 * len(body.get("messages") or ()) > MAX_MODEL_LEN,  # may not fit as tokens
        body.get("stream_options") is not None and not body.get("stream"),
        body.get("top_logprobs") is not None and not body.get("logprobs"),
        body.get("prompt_logprobs") is not None and body.get("stream"),
        body.get("best_of") is not None and (body["best_of"] != (body.get("n") or 1) or body.get("stream")),
        limit == 0 and not body.get("echo"),
        limit is not None and (body.get("min_tokens") or 0) > limit,
        body.get("max_completion_tokens") not in (None, body.get("max_tokens")),
        (body.get("min_tokens") or 0) > 0 and body.get("allowed_token_ids") is not None,
        any(int(token) >= VOCAB for token in body.get("logit_bias") or {}),
        bool(body.get("continue_final_message")),
        (body.get("n") or 1) * num_prompts(body.get("prompt")) > MAX_CHOICES_QUEUED,
        body.get("bad_words") and body.get("allowed_token_ids") is not None,
        (body.get("prompt") is None) == (body.get("messages") is None) and path == "/tokenize",
        any(body.get(name) is not None for name in DEPENDENT),
        body.get("truncate_prompt_tokens") == 0,  # -1 is the whole context
        body.get("name") is not None and path == "/api/show",  # the older name of `model`
        num_prompts(body.get("text_1")) not in (1, num_prompts(body.get("text_2"))),
        uses_tools(body.get("messages")) or uses_tools(body.get("input")),
    ]
    return any(rules)


def known_fields(operation: dict[str, Any]) -> set[str]:
    """The fields of the operation's request model."""
    body = operation.get("requestBody")
    name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2] if body else None
    return {field for model in REQUEST_MODELS if model.__name__ == name for field in model.model_fields}


def uses_tools(turns: Any) -> bool:
    return any(f'"{word}"' in json.dumps(turns) for word in (*TOOL_WORDS, *LEFT_OUT_WORDS, *CALL_WORDS))


def num_prompts(prompt: Any) -> int:
    return len(prompt) if isinstance(prompt, list) and not all(isinstance(item, int) for item in prompt) else 1


def has_long_integer(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(has_long_integer, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and not -(2**63) <= value < 2**63


@pytest.fixture(scope="module")
def description(server: RunningServer) -> Any:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    schema.config.generation.update(allow_x00=True)
    return schema


@pytest.mark.parametrize(("method", "path", "mode"), CASES, ids=lambda value: getattr(value, "value", value))
def test_replies_to_random_requests_follow_the_description(
    server: RunningServer, description: Any, scale: int, method: str, path: str, mode: GenerationMode
) -> None:
    operation = description[path][method]
    described = OPERATIONS[method, path]
    known = known_fields(described)
    parameters = {parameter["name"] for parameter in described.get("parameters", ())}

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=(15 if scale == 1 else 100 * scale) if known or parameters else 2,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    def follows_the_description(case: Any) -> None:
        case.body = shortened(path, spelled_as_integers(case.body))
        response = case.call(timeout=60)
        documented = set(operation.definition.raw["responses"])
        assert str(response.status_code) in documented and response.status_code < 500, (response.status_code, case.body)
        if mode is GenerationMode.NEGATIVE:
            is_ignored = bool(set(case.query or ()) - parameters)
            assert response.status_code >= 400 or is_ignored, (case.body, case.query, case.path_parameters)
        elif response.status_code != 200:
            assert isinstance(case.body, dict) and refusable(path, case.body, known), (response.text, case.body)
            case.validate_response(response, checks=CONFORMANCE)
            case.body = without_dependencies(path, case.body)
            if not refusable(path, case.body, known):
                response = case.call(timeout=60)
                assert response.status_code == 200, (response.text, case.body)
        case.validate_response(response, checks=CONFORMANCE)

    follows_the_description()
