"""server/api/url_hints.py: what to call instead of a URL that does not exist."""

import pytest

from server.api.app import PATHS
from server.api.url_hints import MAX_PATH_CHARS, url_hint


@pytest.mark.parametrize(
    ("path", "instead"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/models", "/v1/models"),
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/v1/embedding", "/v1/embeddings"),
        ("/v1/tokenize", "/tokenize"),
        ("/healthz", "/health"),
        ("/api/v1/chat/completions", "/v1/chat/completions"),
        ("/api/models", "/v1/models"),
    ],
)
def test_a_url_that_is_nearly_right_names_the_right_one(path: str, instead: str) -> None:
    assert url_hint(path, PATHS) == f"Did you mean {instead}?"


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/api/chats", "Ollama"),
        ("/api/blobs/a", "Ollama"),
        ("/api/v0/models", "LM Studio"),
        ("/infill", "llama-server"),
        ("/generate", "TGI"),
        ("/apply-template", "llama-server"),
        ("/lora-adapters", "llama-server"),
    ],
)
def test_the_urls_of_other_servers_say_whose_they_are_and_what_to_call(path: str, named: str) -> None:
    hint = url_hint(path, PATHS)
    assert hint is not None and named in hint and "/v1/chat/completions" in hint


@pytest.mark.parametrize("path", ["/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/pull/"])
def test_what_ollama_does_with_models_has_a_sentence_about_how_it_is_done_here(path: str) -> None:
    hint = url_hint(path, PATHS)
    assert hint is not None and hint.startswith("This part of Ollama's API is not served. ") and "OpenAI" not in hint


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("/v1", "OpenAI's clients ends in /v1"),
        ("/v1/", "OpenAI's clients ends in /v1"),
        ("/v1/chat/completions/chat/completions", "OpenAI's clients ends in /v1"),
        ("/v1/chat/completions/models", "OpenAI's clients ends in /v1"),
        ("/v1/chat/completions/v1/chat/completions", "OpenAI's clients ends in /v1"),
        ("/v1/messages/batches", "Anthropic's Message Batches API is not served"),
        ("/v1/chat/completions/input_tokens", "POST /tokenize takes the same messages"),
        ("/v1/responses/input_tokens", "part of the Responses API is not served"),
        ("/api/chat/completions", "OpenAI's clients ends in /v1"),
        ("/v1/v1/messages", "Anthropic's clients has no /v1"),
        ("/api", "Ollama's clients has no /api"),
    ],
)
def test_a_wrong_base_url_is_told_where_it_ends(path: str, part: str) -> None:
    hint = url_hint(path, PATHS)
    assert hint is not None and part in hint


@pytest.mark.parametrize("path", ["/v1/responses/resp_1", "/v1/responses/resp_1/cancel", "/v1/chat/completions/a"])
def test_replies_that_are_read_later_are_not_stored(path: str) -> None:
    assert url_hint(path, PATHS) == "Replies are not stored, so none can be read, cancelled or deleted later."


def test_the_hint_for_pictures_is_made_of_sentences() -> None:
    expected = "Images are not served. OpenAI's text endpoints are, such as /v1/chat/completions."
    assert url_hint("/v1/images/generations", PATHS) == expected


@pytest.mark.parametrize("path", ["/", "/nowhere", "/favicon.ico", "/" + "v1/" * MAX_PATH_CHARS])
def test_other_urls_have_no_hint(path: str) -> None:
    assert url_hint(path, [known for known in PATHS if known != "/"]) is None


def test_every_url_that_a_hint_can_name_exists() -> None:
    assert all(url_hint(f"{path}/", PATHS) == f"Did you mean {path}?" for path in PATHS if path != "/")
