"""Tool calls of the demo model at temperature 1, as OpenAI's own client parses them."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import openai
import pytest

from tests.support.generated.random_schemas import random_parameters
from tests.support.servers.running import MODEL, RunningServer, forked_server

NUM_SAMPLES = 5
QUESTION: list[Any] = [{"role": "user", "content": "Use a tool, please."}]
TIME = {
    "type": "function",
    "function": {"name": "time", "parameters": {"type": "object", "additionalProperties": False}},
}


def client_of(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def random_tools(rng: random.Random) -> list[dict[str, Any]]:
    functions = [{"name": f"tool_{i}", "parameters": random_parameters(rng)} for i in range(rng.randint(1, 2))]
    return [{"type": "function", "function": function} for function in functions]


def test_required_and_named_calls_follow_the_tools_schemas(server: RunningServer, scale: int) -> None:
    rng = random.Random(8)
    tool_sets = [random_tools(rng) for _ in range(10 * scale)]
    client = client_of(server)

    def ask(numbered: tuple[int, list[dict[str, Any]]]) -> tuple[int, int]:
        """Return the number of answers, and the number of those that were complete."""
        number, tools = numbered
        name = rng.choice(tools)["function"]["name"] if number % 2 else None
        choice: Any = {"type": "function", "function": {"name": name}} if name else "required"
        reply = client.chat.completions.create(
            model=MODEL, messages=QUESTION, tools=tools, tool_choice=choice, n=NUM_SAMPLES, seed=number,  # type: ignore[arg-type]
            max_tokens=300, temperature=1, parallel_tool_calls=False,
        )  # fmt: skip
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
        ended = [choice for choice in reply.choices if choice.finish_reason != "length"]
        for one in ended:
            assert one.finish_reason == "tool_calls" and one.message.tool_calls
            (call,) = one.message.tool_calls
            assert call.type == "function" and call.function.name in ([name] if name else schemas)
            jsonschema.Draft202012Validator(schemas[call.function.name]).validate(json.loads(call.function.arguments))
        return len(reply.choices), len(ended)

    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(ask, enumerate(tool_sets)))
    assert sum(complete for _, complete in counts) >= 0.9 * sum(total for total, _ in counts), counts


def test_a_streamed_call_equals_the_unstreamed_one_and_its_result_is_accepted(server: RunningServer) -> None:
    client = client_of(server)
    fields: Any = {"model": MODEL, "messages": QUESTION, "tools": [TIME], "tool_choice": "required", "seed": 5}
    fields |= {"max_tokens": 200, "parallel_tool_calls": False}
    whole = client.chat.completions.create(**fields)
    with client.chat.completions.stream(**fields) as stream:
        streamed = stream.get_final_completion()
    for choice in (whole.choices[0], streamed.choices[0]):
        assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
        assert (choice.message.tool_calls[0].function.name, choice.message.tool_calls[0].function.arguments) == (
            "time",
            "{}",
        )
    message = whole.choices[0].message
    assert message.tool_calls
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '{"time": "noon"}'}
    messages = [*QUESTION, message.model_dump(exclude_none=True), result]
    answer = client.chat.completions.create(**{**fields, "messages": messages, "tool_choice": "none"})
    assert answer.choices[0].finish_reason in ("stop", "length") and answer.choices[0].message.content


@pytest.mark.parametrize("path", ["/v1/chat/completions"])
def test_a_model_without_tool_support_decides_only_with_tool_emulation(server: RunningServer, path: str) -> None:
    body = {"model": MODEL, "messages": QUESTION, "tools": [TIME], "max_tokens": 40, "n": 4, "seed": 1}
    assert server.post(path, body).json()["error"]["param"] == "tool_choice"
    with forked_server("--dtype", "float32", "--threads", "1", "--tool-emulation") as emulating:
        choices = emulating.post(path, body).json()["choices"]
    for choice in choices:
        has_calls = bool(choice["message"].get("tool_calls"))
        assert has_calls == (choice["finish_reason"] == "tool_calls")
        assert has_calls or choice["message"]["content"]
