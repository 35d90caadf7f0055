"""server/api/truncation.py: Ollama's chat drops its oldest turns. Responses: test_codex_requests.py."""

from collections.abc import Callable
from typing import Any, TypeVar

import httpx
import msgspec
import pytest

from server.api.chat_turn import REPAIRED_HEADER
from server.api.truncation import CUT
from server.fairness.event_loop import INLINE_CHARS
from server.fairness.heavy_work import CHARS_PER_TOKEN, HeavyWork
from tests.support.servers.fake_engine import MAX_MODEL_LEN, READY, FakeEngine
from tests.support.servers.serving import MODEL, client_of, saying, state_around

pytestmark = pytest.mark.anyio

T = TypeVar("T")
SYSTEM = {"role": "system", "content": "Rules"}
LAST = {"role": "user", "content": "Now?"}


def turn(number: int, length: int = 20) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"turn{number} " + "word " * length}, {"role": "assistant", "content": "yes"}]


def conversation(count: int) -> list[dict[str, Any]]:
    return [SYSTEM, *(message for number in range(count) for message in turn(number)), LAST]


async def chat(messages: list[dict[str, Any]], **fields: Any) -> tuple[httpx.Response, str, int]:
    """Return the reply, the prompt, and the limit of the reply's tokens."""
    engine = FakeEngine(saying("fine"))
    state = state_around(engine)
    async with client_of(state) as client:
        reply = await client.post("/api/chat", json={"model": MODEL, "messages": messages, "stream": False, **fields})
    if not engine.submitted:
        return reply, "", 0
    [request] = engine.submitted
    assert len(request.prompt_token_ids) + request.params.max_tokens <= MAX_MODEL_LEN
    return reply, state.texts.tokenizer.decode(request.prompt_token_ids), request.params.max_tokens


def kept(prompt: str, count: int) -> list[bool]:
    return [f"turn{number} " in prompt for number in range(count)]


async def test_a_conversation_that_fits_stays_whole() -> None:
    reply, prompt, _ = await chat(conversation(2))
    assert reply.status_code == 200 and REPAIRED_HEADER not in reply.headers
    assert kept(prompt, 2) == [True, True] and "Rules" in prompt


async def test_the_oldest_turns_make_room_for_the_reply_and_the_header_says_so() -> None:
    reply, prompt, max_tokens = await chat(conversation(40))
    assert reply.status_code == 200 and reply.headers[REPAIRED_HEADER].split(", ")[-1] == CUT
    assert "Rules" in prompt and "Now?" in prompt and max_tokens >= MAX_MODEL_LEN // 8
    first = kept(prompt, 40).index(True)
    assert kept(prompt, 40) == [False] * first + [True] * (40 - first) and 0 < first < 40
    _, longer, _ = await chat([SYSTEM, *(message for number in range(first - 1, 40) for message in turn(number)), LAST])
    assert longer == prompt  # one more turn leaves too little room


async def test_a_short_limit_of_the_reply_needs_less_room() -> None:
    _, prompt, max_tokens = await chat(conversation(40), options={"num_predict": 1})
    _, roomy, _ = await chat(conversation(40))
    assert max_tokens == 1 and kept(prompt, 40).count(True) >= kept(roomy, 40).count(True) > 0


async def test_calls_and_results_go_with_their_turn() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    messages = [turn(0)[0], call, {"role": "tool", "content": "word " * 60}, *conversation(40)]
    reply, prompt, _ = await chat(messages)
    assert reply.status_code == 200 and "turn0 " not in prompt


async def test_the_last_turn_stays_and_takes_what_room_there_is() -> None:
    for length in range(20, 400, 7):
        reply, prompt, max_tokens = await chat([*conversation(4), turn(9, length)[0]])
        if max_tokens and max_tokens < MAX_MODEL_LEN // 8:
            assert reply.status_code == 200 and kept(prompt, 4) == [False] * 4 and "turn9" in prompt
            break
    else:
        pytest.fail("no last turn leaves so little room")
    reply, _, _ = await chat([*conversation(4), turn(9, 4000)[0]])
    assert reply.status_code == 400 and "maximum context length" in reply.json()["error"]


async def test_truncate_false_answers_400() -> None:
    reply, _, _ = await chat(conversation(40), truncate=False)
    assert reply.status_code == 400 and "maximum context length" in reply.json()["error"]


class CountedWork(HeavyWork):
    """Counts the characters of the work that is charged to tenants."""

    num_chars = 0

    async def run(self, work: Callable[[], T], *, size: int, tenant: int) -> T:
        self.num_chars += size if size > INLINE_CHARS else 0
        return await super().run(work, size=size, tenant=tenant)


async def test_a_cut_conversation_is_charged_all_of_its_attempts_and_prepared_once() -> None:
    work, charged = CountedWork(), []
    says = saying("fine")
    engine = FakeEngine(lambda request: charged.append(work.num_chars) or says(request))
    engine.ready = msgspec.structs.replace(READY, max_model_len=4096, max_prompt_tokens=4096)
    state = state_around(engine)
    state.heavy_work = work
    messages = [SYSTEM, *(message for number in range(40) for message in turn(number, 500)), LAST]
    async with client_of(state) as client:
        reply = await client.post("/api/chat", json={"model": MODEL, "messages": messages, "stream": False})
    assert reply.status_code == 200 and CUT in reply.headers[REPAIRED_HEADER]
    [request], [num_chars] = engine.submitted, charged
    assert request.overhead_tokens == num_chars // CHARS_PER_TOKEN
    assert (request.request_id, engine.new_request_id()) == (1, 2)
