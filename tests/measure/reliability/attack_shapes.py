"""Shapes of attacks by one API key: what each of its connections sends, again and again.

Each request is within the API's limits, or is refused by them: the question is what it costs others.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from tests.support.servers.running import MODEL

Body = dict[str, Any]
Ending = Literal["read", "leave", "stall", "hold"]  # after sending: read the answer, leave, stop reading, hold the end

NUM_IDS = 3000  # of the bundled model's vocabulary
NUM_TOOLS, NUM_TURNS = 30, 480  # as many as its context holds


@dataclass(frozen=True)
class Shape:
    """One attack."""

    name: str
    requests: Callable[[random.Random], Iterator[bytes]]
    num_connections: int = 16
    ending: Ending = "read"
    uses_tls: bool = False


def post(path: str, body: object, key: str = "attacker") -> bytes:
    """Return the bytes of a request that closes its connection."""
    content = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def get(path: str, more: str = "") -> bytes:
    """Return the bytes of a request without a body; `more`: further header lines."""
    head = (
        f"GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer attacker\r\nconnection: close\r\n{more}\r\n"
    )
    return head.encode()


def completion(**fields: Any) -> Body:
    return {"model": MODEL, "prompt": "It was", "max_tokens": 64, "ignore_eos": True, **fields}


def chat(**fields: Any) -> Body:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 64, **fields}


def same(path: str, body: object) -> Callable[[random.Random], Iterator[bytes]]:
    request = post(path, body)

    def requests(_: random.Random) -> Iterator[bytes]:
        while True:
            yield request

    return requests


def each(make: Callable[[int, random.Random], bytes]) -> Callable[[random.Random], Iterator[bytes]]:
    def requests(rng: random.Random) -> Iterator[bytes]:
        for number in count(rng.randrange(2**31)):
            yield make(number, rng)

    return requests


def prompts(how_many: int, length: int) -> list[list[int]]:
    rng = random.Random(length)
    return [[rng.randrange(3, NUM_IDS) for _ in range(length)] for _ in range(how_many)]


def turns(how_many: int) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": "a"} for i in range(how_many)]


def distinct_schema(number: int, _: random.Random) -> bytes:
    properties = {f"p{number}_{i}": {"type": "string", "maxLength": 20 + i} for i in range(40)}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return post("/v1/chat/completions", chat(n=8, response_format=response_format))


def distinct_regex(number: int, _: random.Random) -> bytes:
    regex = f"[a-z]{{1,{1 + number % 900}}}"
    body = completion(prompt=prompts(30, 3), n=8, max_tokens=4, ignore_eos=False, structured_outputs={"regex": regex})
    return post("/v1/completions", body)


def long_prompt(number: int, rng: random.Random) -> bytes:
    ids = [rng.randrange(3, NUM_IDS) for _ in range(1900)]
    return post("/v1/completions", completion(prompt=ids, max_tokens=1))


def bomb(number: int, _: random.Random) -> bytes:
    factors = {"allOf": [{"type": "integer", "multipleOf": 9967 + number % 7}, {"type": "integer", "multipleOf": 9973}]}
    return post(
        "/v1/chat/completions",
        chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": factors}}),
    )


BIASES = {str(i): 1.0 for i in range(2900)}
WORDS = ["".join(chr(97 + (i * k) % 26) for k in range(200)) for i in range(1, 65)]
TOOLS = [
    {
        "type": "function",
        "function": {"name": f"f{i}", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}},
    }
    for i in range(NUM_TOOLS)
]
STOPS = ["x" * 255 + str(i) for i in range(4)]
LARGE = 1 << 20
HEADERS = "".join(f"h{i}: {'v' * 400}\r\n" for i in range(120))
UNREAD = completion(n=8, logprobs=20, stream=True, max_tokens=400)

SHAPES = [
    Shape("priority", same("/v1/completions", completion(priority=-(2**31), n=8))),
    Shape("biases", same("/v1/completions", completion(n=8, logit_bias=BIASES))),
    Shape("allowed tokens", same("/v1/completions", completion(n=8, allowed_token_ids=list(range(3, NUM_IDS))))),
    Shape("bad words", same("/v1/completions", completion(n=8, bad_words=WORDS))),
    Shape("stop strings", same("/v1/completions", completion(n=8, stop=STOPS, max_tokens=200))),
    Shape("distinct schemas", each(distinct_schema)),
    Shape("distinct expressions", each(distinct_regex)),
    Shape("expensive schemas", each(bomb)),
    Shape("many tools", same("/v1/chat/completions", chat(tools=TOOLS, tool_choice="required", n=8))),
    Shape("logprobs", same("/v1/completions", completion(prompt=prompts(32, 5), n=8, logprobs=20, max_tokens=90))),
    Shape("chat logprobs", same("/v1/chat/completions", chat(n=8, logprobs=True, top_logprobs=20, max_tokens=400))),
    Shape("echo", same("/v1/completions", completion(prompt=prompts(60, 1000), echo=True, logprobs=5, max_tokens=0))),
    Shape("expert routing", same("/v1/completions", completion(n=8, expert_routing=True, expert_usage=True))),
    Shape("gate logits", same("/v1/completions", completion(n=8, gate_logits=True, max_tokens=100))),
    Shape("many prompts", same("/v1/completions", completion(prompt=prompts(112, 3), n=8, max_tokens=4))),
    Shape("long prompts", each(long_prompt)),
    Shape("/tokenize texts", same("/tokenize", {"model": MODEL, "prompt": "truth " * 1500})),
    Shape("/tokenize messages", same("/tokenize", {"model": MODEL, "messages": turns(NUM_TURNS)})),
    Shape("too many messages", same("/tokenize", {"model": MODEL, "messages": turns(9999)})),
    Shape("/detokenize", same("/detokenize", {"model": MODEL, "tokens": [500] * 250_000})),
    Shape("/experts", each(lambda number, rng: get(f"/experts?window={1 + number % 60}"))),
    Shape("large JSON", same("/v1/completions", completion(x=[[] for _ in range(90_000)]))),
    Shape("large ids", same("/v1/completions", completion(prompt=[7] * 400_000))),
    Shape("slow bodies", same("/v1/completions", completion(x="y" * (LARGE - 200))), 300, "hold"),
    Shape("headers", each(lambda number, rng: get("/v1/models", HEADERS))),
    Shape("clients that leave", same("/v1/completions", completion(n=8, max_tokens=500)), 32, "leave"),
    Shape("clients that do not read", same("/v1/completions", UNREAD), 32, "stall"),
    Shape("new connections", each(lambda number, rng: get("/health")), 64),
    Shape("TLS handshakes", each(lambda number, rng: b""), 32, "leave", uses_tls=True),
]  # fmt: skip

# Half of the places for running requests, which are 256: what a key gets that shares the server with one other.
HONEST = Shape("fair half", same("/v1/completions", completion(stream=True, n=8)))
