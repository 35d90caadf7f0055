"""Examples for the API's description: a body for each operation that takes one, and values for URLs."""

from collections.abc import Mapping
from typing import Any

Body = Mapping[str, Any]

_QUESTION = [{"role": "user", "content": "Count from 3 to 7."}]
_BODIES: Mapping[str, Body] = {
    "/v1/completions": {"prompt": "It was not in her power to", "max_tokens": 40, "temperature": 0.7, "seed": 1},
    "/v1/chat/completions": {"messages": _QUESTION, "max_tokens": 60, "temperature": 0},
    "/v1/responses": {"input": "Count from 3 to 7.", "max_output_tokens": 60},
    "/v1/messages": {"max_tokens": 60, "messages": _QUESTION},
    "/v1/messages/count_tokens": {"messages": _QUESTION},
    "/api/chat": {"messages": _QUESTION, "stream": False, "options": {"num_predict": 60, "temperature": 0}},
    "/api/generate": {"prompt": "Count from 3 to 7.", "stream": False, "options": {"num_predict": 60}},
    "/api/embed": {"input": ["Who comes to dinner?", "Mr. Bingley"]},
    "/api/embeddings": {"prompt": "Who comes to dinner?"},
    "/api/show": {},
    "/v1/embeddings": {"input": ["Who comes to dinner?", "Mr. Bingley"]},
    "/v1/score": {"text_1": "Who comes to dinner?", "text_2": ["Mr. Bingley", "It rains."]},
    "/v1/rerank": {"query": "Who comes to dinner?", "documents": ["It rains.", "Mr. Bingley"], "top_n": 1},
    "/tokenize": {"prompt": "It was not", "return_token_strs": True},
    "/detokenize": {"tokens": [300, 301]},
}
_BATCH: Body = {
    "input_file_id": "file-0123456789abcdef",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}
_ADAPTER = {"lora_name": "sql"}
_ADAPTERS: Mapping[str, Body] = {
    "/v1/load_lora_adapter": {**_ADAPTER, "lora_path": "/models/sql-adapter"},
    "/v1/unload_lora_adapter": _ADAPTER,
}
_URL_VALUES: Mapping[str, str | int] = {
    "file_id": "file-0123456789abcdef",
    "batch_id": "batch_0123456789abcdef",
    "name": "main.js",
    "limit": 20,
    "after": "file-0123456789abcdef",
    "order": "asc",
    "purpose": "batch",
    "interval": 5,
    "window": 60,
}


def example_body(path: str, model: str) -> Body | None:
    """Return the example of the body of POST `path` for a server of `model`; None if there is none."""
    if path == "/v1/batches":
        return _BATCH
    if path in _ADAPTERS:
        return _ADAPTERS[path]
    return {"model": model, **_BODIES[path]} if path in _BODIES else None


def example_value(parameter: str, model: str) -> str | int | None:
    """Return the example of a parameter in a URL; None if there is none."""
    return model if parameter == "model_id" else _URL_VALUES.get(parameter)
