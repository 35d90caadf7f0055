"""Structured output from the demo model at temperature 1: every complete answer has the requested format."""

import enum
import json
import random
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import openai
import pydantic
import pytest

from tests.support.generated.random_schemas import random_schema
from tests.support.servers.running import MODEL, RunningServer

NUM_SAMPLES = 5
NUM_AT_ONCE = 6
FORMATS = jsonschema.FormatChecker(["ipv4", "uuid"])


def answers(server: RunningServer, formats: Iterable[dict[str, Any]], **params: Any) -> list[list[dict[str, Any]]]:
    """Return the choices of one chat for each format; several chats run at a time."""

    def ask(numbered: tuple[int, dict[str, Any]]) -> list[dict[str, Any]]:
        number, response_format = numbered
        body = {"model": MODEL, "messages": [{"role": "user", "content": f"Describe number {number}."}]}
        sampling = {"temperature": 1, "n": NUM_SAMPLES, "seed": number, "max_tokens": 500, **params}
        response = server.post("/v1/chat/completions", {**body, **sampling, **response_format})
        assert response.status_code == 200, (response_format, response.text)
        choices: list[dict[str, Any]] = response.json()["choices"]
        return choices

    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        return list(pool.map(ask, enumerate(formats)))


def check_formats(
    choices_of: list[list[dict[str, Any]]], is_valid: Callable[[int, str], bool], least_share: float = 0.9
) -> None:
    ended = [
        (number, choice["message"]["content"])
        for number, choices in enumerate(choices_of)
        for choice in choices
        if choice["finish_reason"] == "stop"
    ]
    wrong = [(number, text) for number, text in ended if not is_valid(number, text)]
    assert not wrong, wrong[:5]
    share = len(ended) / sum(map(len, choices_of))
    assert share >= least_share, f"{len(ended)} answers ended"


def test_answers_that_end_validate_by_their_schema(server: RunningServer, scale: int) -> None:
    rng = random.Random(5)
    schemas = [random_schema(rng) for _ in range(20 * scale)]
    formats = [{"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": s}}} for s in schemas]
    validators = [jsonschema.Draft202012Validator(schema, format_checker=FORMATS) for schema in schemas]

    def is_valid(number: int, text: str) -> bool:
        document = json.loads(text)
        assert json.dumps(document, ensure_ascii=False, separators=(",", ":")).count(" ") == text.count(" ")
        return bool(validators[number].is_valid(document))

    check_formats(answers(server, formats), is_valid)


def test_answers_match_their_regular_expression(server: RunningServer, scale: int) -> None:
    patterns = [
        "[a-z]{3,9}( [a-z]{2,5}){1,3}\\.",
        "(\\+1 )?\\d{3}-\\d{4}",
        "[äöü]+x|[^a-z]{2}",
        " {1,3}a",
        "(ab?){1,9}c",
    ]
    rng = random.Random(6)
    patterns += [f"[{c}-z]{{1,{rng.randint(1, 9)}}}{rng.choice('!?/')}" for c in "abcdefghij"[: 1 * scale]]
    formats = [{"structured_outputs": {"regex": pattern}} for pattern in patterns]
    check_formats(answers(server, formats), lambda number, text: re.fullmatch(patterns[number], text) is not None)


def test_answers_are_one_of_the_choices(server: RunningServer, scale: int) -> None:
    rng = random.Random(7)
    words = [
        "yes",
        "no",
        "yes, please",
        " spaced ",
        "日本語",
        "\U00010348",
        'a "quote" \\',
        "two\nlines",
        "</s>",
        "</s>x",
    ]
    choices = [rng.sample(words, rng.randint(1, 5)) for _ in range(4 * scale)]
    formats = [{"structured_outputs": {"choice": choice}} for choice in choices]
    check_formats(answers(server, formats), lambda number, text: text in choices[number], least_share=1.0)


def test_a_grammar_of_brackets_gives_balanced_brackets(server: RunningServer) -> None:
    def is_balanced(number: int, text: str) -> bool:
        while (less := text.replace("()", "")) != text:
            text = less
        return not text

    form = {"structured_outputs": {"grammar": 'start: ("(" start ")"){1,3} | ""'}}
    check_formats(answers(server, [form] * 3), is_balanced, least_share=0.5)


@pytest.mark.parametrize("params", [{}, {"temperature": 0}, {"logprobs": True, "top_logprobs": 2}])
def test_the_same_request_gives_the_same_answer_beside_others_and_streamed(
    server: RunningServer, params: dict[str, Any]
) -> None:
    form = {"response_format": {"type": "json_object"}, "max_tokens": 60}
    together = answers(server, [form] * 4, **params)
    assert answers(server, [form], **params)[0] == together[0]
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Describe number 0."}], "stream": True}
    sampling = {"temperature": 1, "n": NUM_SAMPLES, "seed": 0, **form, **params}
    streamed = server.post("/v1/chat/completions", {**body, **sampling}).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in streamed if line.startswith("data: {")]
    for choice in together[0]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        text = "".join(c["delta"].get("content", "") for c in mine)
        assert (text, mine[-1]["finish_reason"]) == (choice["message"]["content"], choice["finish_reason"])


class Colour(enum.Enum):
    RED = "red"
    BLUE = "dark blue"


class Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    name: str = pydantic.Field(max_length=8)
    colour: Colour
    size: int | None = pydantic.Field(ge=0, le=99)


class Machine(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    parts: list[Part] = pydantic.Field(min_length=1, max_length=2)
    is_new: bool


def test_openais_client_parses_answers_into_its_own_classes(server: RunningServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    messages: list[Any] = [{"role": "user", "content": "A machine, please."}]
    reply = client.chat.completions.parse(
        model=MODEL, messages=messages, response_format=Machine, n=4, seed=2, max_tokens=300
    )
    machines = [choice.message.parsed for choice in reply.choices if choice.finish_reason == "stop"]
    assert machines and all(isinstance(machine, Machine) and machine.parts for machine in machines)


def test_a_completion_with_echo_keeps_its_prompt_in_front_of_the_answer(server: RunningServer) -> None:
    form = {"structured_outputs": {"choice": ["Paris", "Rome"]}, "echo": True, "logprobs": 1, "max_tokens": 20}
    choice = server.complete("The city of", temperature=1, **form).json()["choices"][0]
    assert choice["text"] in ("The city ofParis", "The city ofRome")
    assert len(choice["logprobs"]["tokens"]) == len(choice["logprobs"]["token_logprobs"])


def test_an_answer_cut_off_by_length_or_a_stop_string_says_so(server: RunningServer) -> None:
    form = {"structured_outputs": {"regex": "[a-z]{60}"}}
    assert server.complete("x", max_tokens=3, **form).json()["choices"][0]["finish_reason"] == "length"
    digits = {"structured_outputs": {"choice": ["12345"]}}
    choice = server.complete("x", max_tokens=30, stop=["3"], **digits).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("12", "stop", "3")
