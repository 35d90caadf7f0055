"""Targets of the fuzzer: each takes bytes and raises if the product breaks a promise about them."""

import json
import math
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import orjson
import torch

from engine.grammars.matcher import GrammarCompiler, GrammarError
from engine.messages import FrameReader, FromEngine, ToEngine
from model.ops.reference.ops import ReferenceOps
from server.chat.jinja_sandbox import SandboxedTemplate, TemplateRefusal
from server.chat.render_budget import TemplateBudgetExceeded
from server.errors import ApiError
from server.schemas.completion import CompletionRequest
from server.schemas.validation import validate
from server.strict_json import parse_object
from server.structured_output.constraints import constraint_of
from server.structured_output.grammar_check_job import make_compiler
from server.tokenizer.config_files import TokenizerError
from server.tokenizer.tokenizer import load_tokenizer
from tests.fuzz.heads import check_heads
from tests.support.kernels.native_cases import ISAS, native
from tests.support.kernels.sampling_cases import assert_same, random_logits, random_rows, sampled_by

MAX_STEPS = 20_000  # of a template
BODY = {"model": "m", "prompt": "a"}


def check_json(data: bytes) -> None:
    """Check that Python reads whatever is accepted too, that it can be written again, and holds no NaN or Inf."""
    try:
        parsed = parse_object(data)
    except ApiError as error:
        assert error.status == 400 and error.body()
        return
    assert parsed == json.loads(data)
    assert orjson.loads(orjson.dumps(parsed)) == parsed
    stack: list[Any] = [parsed]
    while stack:
        value = stack.pop()
        stack += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        assert not isinstance(value, float) or math.isfinite(value)


@cache
def _compiler() -> GrammarCompiler:
    tokens = [b"", b"", b"", *(bytes([byte]) for byte in range(256)), b"the", b"true", b'":', b'{"']
    return make_compiler(tokens, [0, 1, 2], len(tokens), [2])


def check_schema(data: bytes) -> None:
    """The constraint of a body is compiled, or refused by a 400 or by the compiler's own error."""
    try:
        fields = parse_object(data)
        constraint = constraint_of(validate(CompletionRequest, {**fields, **BODY}))
    except ApiError as error:
        assert error.status == 400 and error.body()
        return
    if constraint is not None:
        try:
            _compiler().check(constraint.grammar)
        except GrammarError as error:
            assert str(error)


def check_template(data: bytes) -> None:
    """A template renders the same text twice, or is refused."""
    source = data.decode("utf-8", errors="replace")
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "World"}]
    rendered: list[str] = []
    for _ in range(2):
        variables: dict[str, object] = {"messages": messages, "bos_token": "<s>", "add_generation_prompt": True}
        try:
            rendered.append(SandboxedTemplate(source).render(variables, MAX_STEPS))
        except (jinja2.TemplateError, TemplateBudgetExceeded, TemplateRefusal) as error:
            rendered.append(type(error).__name__)
    assert rendered[0] == rendered[1] or "strftime_now" in source or " at 0x" in rendered[0]


def check_tokenizer(data: bytes) -> None:
    """A tokenizer file is loaded and used, or refused in one line. The first line is the file's name."""
    name, _, content = data.partition(b"\n")
    file = {b"model": "tokenizer.model", b"tekken": "tekken.json"}.get(name, "tokenizer.json")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / file).write_bytes(content)
        try:
            tokenizer = load_tokenizer(Path(folder))
            tokenizer.decode(tokenizer.encode("ab <s> \u00e9\n"))
        except TokenizerError as error:
            assert "\n" not in str(error)


def check_frames(data: bytes) -> None:
    """A byte stream gives the same messages however it is cut, in both directions, or DecodeError."""
    for message_type in (ToEngine, FromEngine):
        results = [_messages(message_type, data, num_bytes) for num_bytes in (len(data) or 1, 7)]
        assert results[0] == results[1]


def _messages(message_type: Any, data: bytes, num_bytes: int) -> list[bytes | str]:
    reader: FrameReader[Any] = FrameReader(message_type)
    found: list[bytes | str] = []
    try:
        for start in range(0, len(data), num_bytes):
            found += [msgspec.msgpack.encode(message) for message in reader.feed(data[start : start + num_bytes])]
    except msgspec.DecodeError:
        return ["invalid"]
    return found


def check_sampling(data: bytes) -> None:
    """The C interface samples what the reference does, on each instruction set. The bytes seed the parameters."""
    rng = random.Random(data)
    vocab_size = rng.choice((1, 7, 50, 1023))
    logits, rows = random_logits(rng, vocab_size), random_rows(rng, vocab_size)
    expected, expected_history = sampled_by(ReferenceOps(), logits, rows)
    for isa in ISAS:
        got, history = sampled_by(native(isa), logits, rows)
        assert_same(got, expected, rows, vocab_size)
        assert torch.equal(history, expected_history)


@dataclass(frozen=True)
class Target:
    """One fuzzer. `words`: what its parser knows."""

    check: Callable[[bytes], None]
    words: tuple[bytes, ...] = (b"",)


TARGETS = {
    "heads": Target(
        check_heads,
        (
            b"\r\n",
            b"\r\n\r\n",
            b"content-length: 5\r\n",
            b"transfer-encoding: chunked\r\n",
            b"5\r\nhello\r\n0\r\n\r\n",
            b"POST /x HTTP/1.1\r\nhost: h\r\n",
            b"HTTP/9.9",
            b"expect: 100-continue\r\n",
            b"connection: close\r\n",
            b" \t:",
        ),
    ),
    "json": Target(check_json, (b'{"a":', b"[[", b"NaN", b"1e400", b'"\\ud800"', b"\xef\xbb\xbf", b'"a":1,"a":2')),
    "schemas": Target(
        check_schema,
        (
            b'"$ref":"#"',
            b'"multipleOf":9973',
            b'"pattern":"(a|b)*"',
            b'"allOf":[',
            b'"minItems":9',
            b'"type":"integer"',
            b'"enum":[1,"a"]',
            b'{"response_format":{"type":"json_schema","json_schema":{"schema":',
        ),
    ),
    "templates": Target(
        check_template,
        (
            b"{% for m in messages %}",
            b"{% endfor %}",
            b"{{ m['content'] }}",
            b"|tojson",
            b"|sort",
            b" * 99999",
            b"range(9999)",
            b"{% macro f() %}{{ f() }}{% endmacro %}",
            b"namespace(a=1)",
            b"raise_exception('x')",
            b".__class__",
            b"%}",
            b"}}",
        ),
    ),
    "tokenizers": Target(
        check_tokenizer,
        (b'"vocab":{', b'"merges":[', b"\x0a", b"\x12", b"\xff\xff\xff\x7f", b'"added_tokens":[', b'"token_bytes":'),
    ),
    "frames": Target(
        check_frames, (b"\x00\x00\x00\x01", b"\xff\xff\xff\xff", b"\xa4type", b"\xdd\xff\xff\xff\xff", b"\xc1")
    ),
    "sampling": Target(check_sampling),
}
