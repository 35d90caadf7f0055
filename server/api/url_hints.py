"""Hints at what to call instead of a URL that does not exist. A hint never repeats the client's URL."""

from collections.abc import Collection
from difflib import get_close_matches

MAX_PATH_CHARS = 128  # of a path that is compared with all others
MIN_LIKENESS = 0.8
_CHAT = "/v1/chat/completions"
_OPENAI_BASE = "The base URL of OpenAI's clients ends in /v1: they add the rest, such as /chat/completions."
# URLs that programs call when their base URL is wrong, and those that are base URLs themselves.
_BASES = {
    "/v1": _OPENAI_BASE,
    "/api/chat/completions": _OPENAI_BASE,
    "/v1/v1/messages": "The base URL of Anthropic's clients has no /v1: they add /v1/messages.",
    "/api": "The base URL of Ollama's clients has no /api: they add the rest, such as /api/chat.",
}
_NOT_STORED = "Replies are not stored, so none can be read, cancelled or deleted later."
_STORED = {"/v1/responses/": _NOT_STORED, f"{_CHAT}/": _NOT_STORED}
# URLs of OpenAI's API that are taken for its base URL.
_WHOLE_URLS = (_CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings")
# What Ollama's API does with models, and how it is done here.
_MODELS = {
    "/api/pull": "The server downloads nothing: start it with a model that is there, as `smoe serve MODEL`.",
    "/api/push": "The server uploads nothing.",
    "/api/create": "The server makes no models: start it with --chat-template, --quantization or --lora.",
    "/api/copy": "Models get further names when the server starts: --served-model-name NAME.",
    "/api/delete": "The server deletes no models: delete the model's files.",
}
# First parts of the paths of other servers' own APIs.
_OTHER_APIS = {
    "/v1/messages/batches": "Anthropic's Message Batches API is not served",
    "/v1/chat/completions/input_tokens": "This URL is not served: POST /tokenize takes the same messages",
    "/v1/chat/completions/render": "This URL is not served: POST /tokenize takes the same messages",
    "/v1/responses/compact": "This part of the Responses API is not served",
    "/v1/responses/input_tokens": "This part of the Responses API is not served",
    "/api/v0/": "LM Studio's own API is not served",
    "/api/": "This part of Ollama's API is not served",
    "/generate": "TGI's API is not served",
    "/apply-template": "llama-server's own API is not served",
    "/infill": "llama-server's own API is not served",
    "/lora-adapters": "llama-server's own API is not served",
    "/props": "llama-server's own API is not served",
    "/slots": "llama-server's own API is not served",
    "/v1/images": "Images are not served",
    "/v1/audio": "Audio is not served",
    "/v1/moderations": "Moderation is not served",
    "/v1/conversations": "The Conversations API is not served",
    "/v1/assistants": "The Assistants API is not served",
    "/v1/threads": "The Assistants API is not served",
    "/v1/fine_tuning": "Training is not served",
}


def url_hint(path: str, known: Collection[str]) -> str | None:
    """Return a sentence about a path that is not among the `known` ones; None if nothing is like it."""
    if (sentence := _BASES.get(path.rstrip("/"))) is not None:
        return sentence
    if _has_whole_base(path, known):
        return _OPENAI_BASE
    instead = _spelled_otherwise(path, known)
    if instead is None:
        if (sentence := _MODELS.get(path.rstrip("/"))) is not None:
            return f"This part of Ollama's API is not served. {sentence}"
        for start, reason in _OTHER_APIS.items():
            if path.startswith(start):
                return f"{reason}. OpenAI's text endpoints are, such as {_CHAT}."
        if (sentence := next((_STORED[start] for start in _STORED if path.startswith(start)), None)) is not None:
            return sentence
        instead = _similar_path(path, known)
    return None if instead is None else f"Did you mean {instead}?"


def _has_whole_base(path: str, known: Collection[str]) -> bool:
    """Return whether a client has added its path to a base URL that was a whole URL, as in
    /v1/chat/completions/chat/completions."""
    added = next((path.removeprefix(whole) for whole in _WHOLE_URLS if path.startswith(f"{whole}/")), "")
    return len(added) > 1 and (added in known or f"/v1{added}" in known)


def _spelled_otherwise(path: str, known: Collection[str]) -> str | None:
    """Return the path with /v1 once in front, without /api and without a slash at its end, if that is known."""
    plain = path.rstrip("/")
    inner = plain.removeprefix("/api")
    candidates = (plain, f"/v1{plain}", plain.replace("/v1/v1/", "/v1/", 1), f"/v1{inner}", inner)
    return next((candidate for candidate in candidates if candidate in known), None)


def _similar_path(path: str, known: Collection[str]) -> str | None:
    if len(path) > MAX_PATH_CHARS:
        return None
    return next(iter(get_close_matches(path.rstrip("/"), known, n=1, cutoff=MIN_LIKENESS)), None)
