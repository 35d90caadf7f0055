"""Requests with tools, scripts of answers that call them, and a check of their grammars."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import GrammarError
from engine.grammars.matcher import GrammarCompiler
from engine.messages import Ready
from engine.types import Request
from server.chat.template import ChatTemplate
from server.generation.generation_defaults import GenerationDefaults
from server.generation.state import ServerState, TextFrontend
from server.tokenizer.tokenizer import Tokenizer
from tests.support.checkpoints.mistral_tokenizers import v3_tokenizer
from tests.support.servers.fake_engine import EOS, READY, FakeEngine
from tests.support.servers.inline_sandbox import InlineSandbox
from tests.support.servers.serving import MODEL, client_of, events, state_around, tokenizer

URL = "/v1/chat/completions"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ASK: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "How is it in Paris?"}],
    "tools": [WEATHER, CLOCK],
}
PARIS = {"city": 'Pa"ri\\s }]'}
ONE = f'[TOOL_CALLS] [{{"name": "weather", "arguments": {json.dumps(PARIS)}}}]'
SECOND = '{"name": "clock", "arguments": {}}'
TWO = f'[TOOL_CALLS] [{{"name": "weather", "arguments": {json.dumps(PARIS)}, "id": "abcdefghi"}}, {SECOND}]'
CLOCK_CALL = '[TOOL_CALLS] [{"name": "clock", "arguments": {}}]'
NAMED = {"type": "function", "function": {"name": "clock"}}
FIRST_BYTE_ID = {1: 3, 3: 771}  # of <0x00>, by the tokenizer's version


@cache
def v3() -> Tokenizer:
    """Load the tokenizer of Mixtral-8x22B-Instruct."""
    with tempfile.TemporaryDirectory() as folder:
        return v3_tokenizer(Path(folder))


@cache
def v3_template() -> ChatTemplate:
    """Return its chat template, one for all servers of a run of tests."""
    return ChatTemplate(None, v3())


def v3_state(engine: FakeEngine) -> ServerState:
    engine.ready = ready_with_vocab(32768)
    texts = TextFrontend(v3(), v3_template(), GenerationDefaults(), InlineSandbox())
    return replace(state_around(engine), texts=texts)


def ready_with_vocab(vocab_size: int) -> Ready:
    return msgspec.structs.replace(READY, vocab_size=vocab_size, max_model_len=32768, max_prompt_tokens=32768)


def calling(text: str) -> Callable[[Request], Sequence[int]]:
    """Build a script that generates the text, with [TOOL_CALLS] as its control token."""
    ids = [*v3().encode_with_specials(text), EOS]
    return lambda request: ids


async def answered(text: str, **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]], Request]:
    """Send a chat unstreamed and streamed; return the reply, the chunks and the engine's request."""
    engine = FakeEngine(calling(text))
    async with client_of(v3_state(engine)) as client:
        whole = await client.post(URL, json={**ASK, **fields})
        streamed = await client.post(URL, json={**ASK, **fields, "stream": True})
    assert whole.status_code == 200, whole.text
    return whole.json(), events(streamed.text), engine.submitted[0]


def allows(grammar: str | None, text: str, *, version: int = 3) -> bool:
    """Return whether the grammar accepts the whole text and then its end. `version`: of the tokenizer."""
    assert grammar is not None
    vocabulary = (v3() if version == 3 else tokenizer()).vocabulary()
    matcher = GrammarCompiler(vocabulary, len(vocabulary.tokens), (EOS,)).matcher(grammar)
    ids: list[int] = []
    if version == 3 and text.startswith("[TOOL_CALLS]"):
        marker = v3().special_token_id("[TOOL_CALLS]")
        ids, text = [marker] if marker is not None else [], text.removeprefix("[TOOL_CALLS]")
    ids += [FIRST_BYTE_ID[version] + byte for byte in text.encode()]
    try:
        mask = matcher.bitmask(ids, 0)
    except GrammarError:
        return False
    return bool(mask[EOS // 8] >> EOS % 8 & 1)
