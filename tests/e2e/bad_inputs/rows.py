"""Rows of the catalogue, and invalid values for each kind of field."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.servers.running import MODEL

Body = dict[str, Any]
HI = {"role": "user", "content": "Hi"}
VOCAB, CONTEXT = 3072, 2048


@dataclass(frozen=True)
class Endpoint:
    """The path of an endpoint, and a valid body."""

    path: str
    good: Body
    can_stream: bool = True


COMPLETIONS = Endpoint("/v1/completions", {"model": MODEL, "prompt": "It was", "max_tokens": 2})
CHAT = Endpoint("/v1/chat/completions", {"model": MODEL, "messages": [HI], "max_tokens": 2})
RESPONSES = Endpoint("/v1/responses", {"model": MODEL, "input": "Hi", "max_output_tokens": 2})
MESSAGES = Endpoint("/v1/messages", {"model": MODEL, "messages": [HI], "max_tokens": 2})
COUNT = Endpoint("/v1/messages/count_tokens", {"model": MODEL, "messages": [HI]}, can_stream=False)
TOKENIZE = Endpoint("/tokenize", {"model": MODEL, "prompt": "Hi"}, can_stream=False)
EMBEDDINGS = Endpoint("/v1/embeddings", {"model": MODEL, "input": "Hi"}, can_stream=False)
SCORE = Endpoint("/v1/score", {"model": MODEL, "text_1": "Hi", "text_2": "Ho"}, can_stream=False)
RERANK = Endpoint("/v1/rerank", {"model": MODEL, "query": "Hi", "documents": ["Ho", "Hi"]}, can_stream=False)
DETOKENIZE = Endpoint("/detokenize", {"model": MODEL, "tokens": [5]}, can_stream=False)
OLLAMA_CHAT = Endpoint("/api/chat", {"model": MODEL, "messages": [HI], "options": {"num_predict": 2}, "stream": False})
OLLAMA_GENERATE = Endpoint(
    "/api/generate", {"model": MODEL, "prompt": "Hi", "options": {"num_predict": 2}, "stream": False}
)
OLLAMA_RAW = Endpoint(OLLAMA_GENERATE.path, {**OLLAMA_GENERATE.good, "raw": True})
OLLAMA_EMBED = Endpoint("/api/embed", {"model": MODEL, "input": "Hi"}, can_stream=False)
OLLAMA_EMBEDDINGS = Endpoint("/api/embeddings", {"model": MODEL, "prompt": "Hi"}, can_stream=False)
OLLAMA_SHOW = Endpoint("/api/show", {"model": MODEL}, can_stream=False)

OPENAI = (COMPLETIONS, CHAT)
GENERATING = (COMPLETIONS, CHAT, RESPONSES, MESSAGES)
OLLAMA_GENERATING = (OLLAMA_CHAT, OLLAMA_GENERATE, OLLAMA_RAW)
OLLAMA = (*OLLAMA_GENERATING, OLLAMA_EMBED, OLLAMA_EMBEDDINGS, OLLAMA_SHOW)
EVERYWHERE = (*GENERATING, COUNT, TOKENIZE, EMBEDDINGS, SCORE, RERANK, *OLLAMA, DETOKENIZE)


@dataclass(frozen=True)
class Row:
    """Cases of one row: changes of a good body (`...` removes a field), and the code and param of the error."""

    endpoints: tuple[Endpoint, ...]
    cases: list[tuple[Body, str, str | None]]  # change, code, param
    status: int = 400


ABOVE, BELOW = "integer_above_max_value", "integer_below_min_value"
NUMBER_ABOVE, NUMBER_BELOW = "decimal_above_max_value", "decimal_below_min_value"
TYPE, VALUE, MISSING = "invalid_type", "invalid_value", "missing_required_parameter"
TOO_MANY, TOO_LONG, NO_TEXT, NO_ITEM = (
    "array_above_max_length",
    "string_above_max_length",
    "empty_string",
    "empty_array",
)
CONTEXT_CODE, UNSUPPORTED, UNKNOWN = "context_length_exceeded", "unsupported_parameter", "unknown_parameter"


def bodies(endpoint: Endpoint, change: Body) -> Iterator[Body]:
    """Yield the good body with the change, and the same as a stream if the endpoint has streams."""
    body = {name: value for name, value in (endpoint.good | change).items() if value is not ...}
    yield body if "stream_options" not in change else body | {"stream": True}
    if endpoint.can_stream:
        yield body | {"stream": True}


def each(name: str, values: list[Any], code: str, param: str | None = None) -> list[tuple[Body, str, str | None]]:
    """Return a case per value of one field."""
    return [({name: value}, code, param or name) for value in values]


NO_INT = [True, "3", "Zebra", 1.0, -0.0, 1e308, [], [1], {}, ""]
NO_NUMBER = [True, "1", "Zebra", [], [1.0], {}, ""]
NO_BOOL = ["Zebra", "true", 1, 0, 1.0, [], {}]
NO_TEXT_TYPE = [5, 1.5, True, [], {}, ["Zebra"]]
NO_ID = [True, "5", 1.0, None, [5], {}]


def integers(name: str, low: int, high: int | None) -> list[tuple[Body, str, str | None]]:
    """Return cases of an integer field: just outside its range, beyond 64 bits, and other types."""
    below = each(name, [low - 1, -(2**63) - 1], BELOW)
    above = each(name, [2**63, 10**30, 10**400, *([] if high is None else [high + 1])], ABOVE)
    return [*each(name, NO_INT, TYPE), *below, *above]


def bounds_on_tokens(name: str, low: int) -> list[tuple[Body, str, str | None]]:
    """Return cases of an integer field of which -1 sets no bound."""
    return [*[case for case in integers(name, low, None) if case[0] != {name: -1}], *each(name, [-2], BELOW)]


def numbers(name: str, below: list[float], above: list[float]) -> list[tuple[Body, str, str | None]]:
    """Return cases of a number field: outside its range, and other types."""
    return [*each(name, NO_NUMBER, TYPE), *each(name, below, NUMBER_BELOW), *each(name, above, NUMBER_ABOVE)]


def conversation(*messages: Any) -> Body:
    return {"messages": list(messages)}


def parts(*content: Any) -> Body:
    return conversation({"role": "user", "content": list(content)})
