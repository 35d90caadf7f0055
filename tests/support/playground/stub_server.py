"""A server for tests of the playground that answers at once: the page's own files, and scripted replies of the API."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from server.api.playground_files import INDEX, PREFIX, files
from server.api.routes.playground import HEADERS
from tests.support.ports import free_port

NUM_LAYERS, NUM_EXPERTS, K = 4, 8, 2
CONTEXT = 2048
POINTS = 60
DEFAULTS = {"temperature": 0.7, "top_p": 1.0, "top_k": 50, "min_p": 0.0, "repetition_penalty": 1.0}


class StubServer:
    """Replies to the page. A test changes the public fields while the server runs."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.phase = "ready"
        self.api_key: str | None = None
        self.tokens = ["An", " answer"]  # of every generation
        self.calls: list[tuple[str, str]] = []  # tools that every answer in a chat calls: names and arguments
        self.finish_reason = "stop"
        self.breaks = False  # closes the connection behind the first token
        self.num_announced: int | None = None  # bytes of each stream by its header; a shorter one breaks in its middle
        self.failure: tuple[int, str] | None = None  # status and code of every generation
        self.bodies: list[dict[str, Any]] = []  # of the generations
        self.inquiries: list[dict[str, Any]] = []  # bodies about a token's gates or a prompt's tokens
        self.recent: dict[str, Any] = {name: [0.0] * POINTS for name in RECENT}  # columns of GET /load/recent
        self.holds: dict[int, threading.Event] = {}  # what the token at a place waits for
        self.released = threading.Event()  # a stream waits for it behind its first token
        self.released.set()
        self._http: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Listen, on the same port each time."""
        stub = self

        class Handler(PageHandler):
            server_state = stub

        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Close the socket: further connections are refused."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
        self._http = None

    def model(self) -> dict[str, Any]:
        is_ready = self.phase != "loading"
        shape = {"max_model_len": CONTEXT, "num_layers": NUM_LAYERS, "num_experts": NUM_EXPERTS, "experts_per_token": K}
        known = shape if is_ready else dict.fromkeys(shape)
        return {"id": "stub", **known, "generation_defaults": DEFAULTS if is_ready else None}

    def reply_to(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return status and body of a GET."""
        if path == "/health":
            progress = {"stage": "weights", "loaded_bytes": 30, "total_bytes": 120} if self.phase == "loading" else {}
            return 200 if self.phase == "ready" else 503, {"phase": self.phase, **progress}
        replies: dict[str, dict[str, Any]] = {
            "/v1/models": {"data": [self.model()]},
            "/load/recent": {"interval_s": 5, **self.recent},
            "/version": {"version": "1.2.3"},
            "/experts": {"layers": [layer_report(layer) for layer in range(NUM_LAYERS)]},
        }
        return (200, replies[path]) if path in replies else (404, {"error": {"message": f"No {path}."}})


RECENT = (
    "prompt_tokens_per_s", "generated_tokens_per_s", "accepted_tokens_per_s", "running", "waiting", "kv_usage",
    "step_ms", "ttft_p50_ms", "ttft_p99_ms",
)  # fmt: skip


def layer_report(layer: int) -> dict[str, Any]:
    share = [(1 + (layer + expert) % NUM_EXPERTS) / 36 for expert in range(NUM_EXPERTS)]
    top = [[{"text": f" word{expert}", "count": 9}] for expert in range(NUM_EXPERTS)]
    tokens = [round(part * 360) for part in share]
    pairs = [[int(a != b) for b in range(NUM_EXPERTS)] for a in range(NUM_EXPERTS)]
    return {
        "layer": layer, "share": share, "tokens": tokens, "top_tokens": top, "pairs": pairs,
        "entropy": 2.5, "imbalance": 1.8,
    }  # fmt: skip


class PageHandler(BaseHTTPRequestHandler):
    """Handler of a `StubServer`."""

    server_state: StubServer

    def log_message(self, format: str, *args: object) -> None:
        """Write no log."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        name = INDEX if path == "/" else path.removeprefix(PREFIX)
        if (path == "/" or path.startswith(PREFIX)) and name in files():
            content, content_type = files()[name]
            self._send(200, content, {**HEADERS, "content-type": content_type})
        elif path != "/health" and not self._has_key():
            self._send_json(401, {"error": {"message": "Send a valid API key."}})
        else:
            self._send_json(*self.server_state.reply_to(path))

    def do_POST(self) -> None:
        stub = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._has_key():
            return self._send_json(401, {"error": {"message": "Send a valid API key."}})
        if self.path == "/tokenize":
            return self._send_json(200, {"count": len(body["prompt"].split())})
        if not body.get("stream"):
            stub.inquiries.append(body)
            is_prompt = body.get("echo", False)
            choice = scored(body["prompt"]) if is_prompt else gates(body["experts_per_token"])
            return self._send_json(200, {"choices": [choice]})
        stub.bodies.append(body)
        if stub.failure:
            status, code = stub.failure
            return self._send_json(status, {"error": {"message": f"It is {code}.", "code": code}})
        return self._stream("chat" in self.path)

    def _stream(self, is_chat: bool) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        stub = self.server_state
        if stub.num_announced is not None:
            self.send_header("content-length", str(stub.num_announced))
        self.end_headers()
        try:
            for chunk in call_events(stub.calls if is_chat else []):
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            for number, text in enumerate([*stub.tokens, ""]):
                if number == 1:
                    stub.released.wait()
                if number == 1 and stub.breaks:
                    return
                if number in stub.holds:
                    stub.holds[number].wait()
                chunk = event(is_chat, text, number, None if text else stub.finish_reason)
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            return  # the page has stopped the text

    def _has_key(self) -> bool:
        key = self.server_state.api_key
        return key is None or self.headers.get("authorization") == f"Bearer {key}"

    def _send_json(self, status: int, body: object) -> None:
        self._send(status, json.dumps(body).encode(), {"content-type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def routing(number: int) -> list[list[int]]:
    """Return the experts of the token at a place, by layer."""
    return [[(number + layer) % NUM_EXPERTS, (number + layer + 3) % NUM_EXPERTS] for layer in range(NUM_LAYERS)]


def scored(prompt: str) -> dict[str, Any]:
    """Return a choice with a prompt's tokens, its words: the one at place i has the probability e^-i."""
    starts = [0, *(match.start() for match in re.finditer(" ", prompt))]
    tokens = [prompt[start:end] for start, end in pairwise([*starts, len(prompt)])]
    scores = [None, *(-1.0 * place for place in range(1, len(tokens)))]
    tops = [None, *({token: score} for token, score in zip(tokens[1:], scores[1:], strict=True))]
    return {
        "text": prompt, "prompt_token_ids": [1] * len(tokens), "expert_routing": list(map(routing, range(len(tokens)))),
        "logprobs": {"tokens": tokens, "token_logprobs": scores, "top_logprobs": tops, "text_offset": starts},
    }  # fmt: skip


def event(is_chat: bool, text: str, number: int, finish_reason: str | None) -> dict[str, Any]:
    """Return a chunk with one token, or the one that ends the text."""
    others = [(text, -0.2), (" other", -2.0), (" third", -3.0)]
    listed = {"token": text, "logprob": -0.2, "top_logprobs": [{"token": t, "logprob": p} for t, p in others]}
    columns = {"tokens": [text], "token_logprobs": [-0.2], "top_logprobs": [dict(others)]}
    choice = {
        **({"delta": {"content": text}} if is_chat else {"text": text}),
        "logprobs": {"content": [listed]} if is_chat else columns,
        "token_ids": [number], "prompt_token_ids": [1], "expert_routing": [routing(number)],
        "finish_reason": finish_reason,
    }  # fmt: skip
    usage = {"prompt_tokens": 100, "completion_tokens": number + 1}
    return {"choices": [choice], "usage": usage, "seed": 7}


def call_events(calls: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the chunks of calls: the name first, then the arguments in two parts, none with text."""
    events = []
    for index, (name, arguments) in enumerate(calls):
        first = {"id": f"call{index:05}", "type": "function", "function": {"name": name, "arguments": ""}}
        half = len(arguments) // 2
        parts = [first, *({"function": {"arguments": part}} for part in (arguments[:half], arguments[half:]))]
        for part in parts:
            choice = {"delta": {"tool_calls": [{"index": index, **part}]}, "finish_reason": None}
            events.append({"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 1}, "seed": 7})
    return events


def gates(k: int) -> dict[str, Any]:
    """Return a choice with the gates of a token: expert 0 has the largest logit."""
    layers = range(NUM_LAYERS)
    logits = [[1.0 - expert / 8 for expert in range(NUM_EXPERTS)] for _ in layers]
    return {
        "gate_logits": [logits], "expert_routing": [[list(range(k)) for _ in layers]],
        "expert_weights": [[[1 / k] * k for _ in layers]],
    }  # fmt: skip


@contextmanager
def stub_server() -> Iterator[StubServer]:
    stub = StubServer()
    stub.start()
    try:
        yield stub
    finally:
        stub.released.set()
        stub.stop()
