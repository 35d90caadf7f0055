"""Calls of an operation as text, for the page at /docs: curl, and Python with OpenAI's client or httpx."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

Body = Mapping[str, Any]

_MAX_LINE = 80
_UPLOAD = "/v1/files"
# Operations that OpenAI's client has, and their methods.
_OPENAI: Mapping[str, str] = {
    "/v1/completions": "completions.create",
    "/v1/chat/completions": "chat.completions.create",
    "/v1/responses": "responses.create",
    "/v1/embeddings": "embeddings.create",
}


def curl(method: str, base_url: str, path: str, body: Body | None) -> str:
    """Return a command for the shell. `method`: in capitals. `base_url`: without a slash at its end."""
    url = shlex.quote(base_url + path)
    if body is not None:
        return f"curl {url} -H 'Content-Type: application/json' -d {shlex.quote(_json(body))}"
    if (method, path) == ("POST", _UPLOAD):
        return f"curl {url} -F purpose=batch -F file=@questions.jsonl"
    return f"curl {url}" if method == "GET" else f"curl -X {method} {url}"


def python(method: str, base_url: str, path: str, body: Body | None, *, is_json: bool = True) -> str:
    """Return a program that prints the reply. `is_json`: the reply is JSON."""
    if body is not None and path in _OPENAI:
        arguments = "".join(f"    {name}={value!r},\n" for name, value in body.items())
        return (
            "from openai import OpenAI\n\n"
            f'client = OpenAI(base_url="{base_url}/v1", api_key="none")\n'
            f"reply = client.{_OPENAI[path]}(\n{arguments})\nprint(reply)"
        )
    given = "" if body is None else f", json={dict(body)!r}"
    if (method, path) == ("POST", _UPLOAD):
        given = ', data={"purpose": "batch"}, files={"file": open("questions.jsonl", "rb")}'
    shown = "reply.json()" if is_json else "reply.text"
    return f'import httpx\n\nreply = httpx.{method.lower()}("{base_url}{path}"{given})\nprint({shown})'


def _json(body: Body) -> str:
    """Return JSON with a member per line if it is long, so that it can be edited in a shell."""
    text = json.dumps(body)
    if len(text) <= _MAX_LINE:
        return text
    members = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in body.items())
    return f"{{\n{members}\n}}"
