"""server/structured_output/grammar_checker.py: each fault of a grammar has a reason, and waiting checks are bounded."""

import asyncio
import json
from typing import Any

import llguidance
import pytest

from engine.errors import GrammarError
from engine.grammars import matcher
from engine.grammars.matcher import GrammarCompiler
from server.errors import ApiError
from server.sandbox.errors import Crashed, Killed, RanOutOfMemory, SandboxError, SandboxFull, TookTooLong
from server.sandbox.job import Job
from server.schemas import CompletionRequest, validate
from server.structured_output.constraints import JSON_OPTIONS, Constraint
from server.structured_output.grammar_check_job import Verdict
from server.structured_output.grammar_checker import MAX_PENDING, GrammarChecker
from server.structured_output.refusals import (
    COUNTS_FAULT,
    ONE_OF_FAULT,
    PATTERNS_FAULT,
    RANGE,
    REASONS,
    SCHEMA_KEYWORDS,
    UNSUPPORTED_KEYS_FAULT,
)
from tests.support.servers.inline_sandbox import InlineSandbox
from tests.support.servers.serving import MODEL, tokenizer

pytestmark = pytest.mark.anyio

CONSTRAINT = Constraint("start: /a+/", "a.param")
REQUEST = validate(CompletionRequest, {"model": MODEL, "prompt": "x"})


def of_schema(**schema: Any) -> str:
    return f"start: %json {json.dumps({**schema, 'x-guidance': JSON_OPTIONS})}"


def of_regex(regex: str) -> str:
    return f"start: /{llguidance.regex_to_lark(regex)}/"


# One grammar in Lark's notation for each part of llguidance's messages that the checker looks for, and our reason.
FAULTS: dict[str, tuple[str, str]] = {
    "too big": (of_schema(type="object", properties={f"p{i}": {} for i in range(50)}), "too large"),
    "too large": (
        of_schema(allOf=[{"anyOf": [{"required": [f"{i}{j}"]} for j in range(4)]} for i in range(12)]),
        "too large",
    ),
    "limit": (of_regex("\\w*" * 300), "more work than this server allows"),
    "nsatisfiable": (of_schema(type="integer", minimum=5, maximum=3), "no text can match it"),
    "NoExtension": ("start: A\nA: /a/ & /b/", "no text can match it"),
    "not present in a registry": (of_schema(**{"$ref": "http://10.0.0.1/x"}), "refers to something outside itself"),
    "look-around": (of_regex("(?<=a)b"), "looking ahead or behind is not supported"),
    "does not exist": (of_schema(**{"$ref": "#/$defs/none"}), "refers to a part that it does not have"),
    "lookarounds not supported": (of_regex("a\\bb"), "word boundaries"),
    "Unknown format": (of_schema(type="string", format="colour"), "names a format that is not supported"),
    RANGE: (of_schema(type="integer", minimum=2**62), "bounds are too far from 0"),
    "egex": (of_schema(type="string", pattern="[a"), "not a regular expression that this server supports"),
    UNSUPPORTED_KEYS_FAULT: (of_schema(type="array", uniqueItems=True), "unsupported keywords (uniqueItems)"),
    COUNTS_FAULT: (of_schema(properties={"a": {}, "b": {}}, minProperties=2), "need additionalProperties false"),
    PATTERNS_FAULT: (of_schema(patternProperties={"^a": {}, "b$": {"type": "null"}}), "several of patternProperties"),
    ONE_OF_FAULT: (of_schema(oneOf=[{"type": "string"}, {"maxLength": 3}]), "not valid"),
}


@pytest.mark.parametrize("part", FAULTS)
async def test_each_message_of_llguidance_is_recognized(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails after an upgrade that rewords a message; the checker's table then needs the new words."""
    if part == "too big":  # a schema beyond the real limit would take seconds
        monkeypatch.setattr(matcher, "LIMITS_OF_FEW_READINGS", llguidance.LLParserLimits(max_grammar_size=50))
    lark, reason = FAULTS[part]
    constraint = Constraint(lark, "a.param")
    compiler = GrammarCompiler(tokenizer().vocabulary(), tokenizer().vocab_size, tokenizer().eos_ids)
    with pytest.raises(GrammarError) as fault:
        compiler.check(constraint.grammar)
    assert part in str(fault.value).split("\n   1 | ")[0]
    with pytest.raises(ApiError) as refused:
        await GrammarChecker(tokenizer(), InlineSandbox()).compile(REQUEST, [constraint])
    assert (refused.value.status, refused.value.param) == (400, "a.param")
    assert reason in refused.value.message


def test_every_message_that_the_checker_looks_for_has_a_case() -> None:
    own = {"end token"}  # of engine/grammars/matcher.py
    assert {*REASONS, UNSUPPORTED_KEYS_FAULT, ONE_OF_FAULT} - own == set(FAULTS)


def test_a_model_without_an_end_token_is_named_by_the_engines_own_message() -> None:
    compiler = GrammarCompiler(tokenizer().vocabulary(), tokenizer().vocab_size, ())
    with pytest.raises(GrammarError) as fault:
        compiler.check(Constraint('start: "a"', "p").grammar)
    assert [reason for part, reason in REASONS.items() if part in str(fault.value)] == ["the model has no end token"]


@pytest.mark.parametrize(
    ("schema", "keywords"),
    [
        ({"type": "array", "uniqueItems": True, "contains": {}}, ["contains", "uniqueItems"]),
        ({"type": "object", "propertyNames": {"type": "string"}}, ["propertyNames"]),
        ({"type": "string", "format": "binary"}, ["format"]),
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, ["oneOf"]),
        ({"$dynamicRef": "#a"}, ["$dynamicRef"]),
        ({"properties": {"a": {}, "b": {}}, "minProperties": 2}, ["maxProperties", "minProperties"]),
        ({"type": "SECRET", "description": "Unknown format"}, []),
        ({"type": "object"}, []),
    ],
    ids=str,
)
async def test_unsupported_keywords_are_named_and_nothing_else(schema: dict[str, Any], keywords: list[str]) -> None:
    assert set(keywords) <= SCHEMA_KEYWORDS | {"format"}
    checker = GrammarChecker(tokenizer(), InlineSandbox())
    assert await checker.unsupported_keywords(Constraint(of_schema(**schema), "p")) == keywords


async def test_the_engines_end_tokens_end_a_text_also_beyond_the_tokenizers_vocabulary() -> None:
    beyond = tokenizer().vocab_size + 7
    allowed = validate(CompletionRequest, {"model": MODEL, "prompt": "x", "allowed_token_ids": [100, beyond]})
    own = GrammarChecker(tokenizer(), InlineSandbox())
    with pytest.raises(ApiError, match="lacks the end token"):
        await own.compile(allowed, [CONSTRAINT])
    checker = GrammarChecker(tokenizer(), InlineSandbox(), vocab_size=beyond + 1, end_ids=[beyond, 2])
    assert await checker.compile(allowed, [CONSTRAINT]) is not None


class HeldSandbox(InlineSandbox):
    """Answers nothing until `may_finish` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_finish = asyncio.Event()
        self.checked: list[str] = []

    async def run(self, job: Job[Any], *, deadline_s: float = 0.0, tenant: int = 0) -> Any:
        self.checked.append(job.args[0])
        await self.may_finish.wait()
        return Verdict(None)


async def test_waiting_checks_are_bounded_and_no_grammar_is_checked_twice() -> None:
    sandbox = HeldSandbox()
    checker = GrammarChecker(tokenizer(), sandbox)
    names = [str(i) for i in range(MAX_PENDING)]
    waiting = [asyncio.create_task(checker._find_fault(name, "p", 0)) for name in [*names, "0"]]
    await asyncio.sleep(0)
    with pytest.raises(ApiError) as refused:
        await checker._find_fault("one more", "p", 0)
    assert refused.value.status == 429 and int(refused.value.headers["retry-after"]) >= 1
    sandbox.may_finish.set()
    assert await asyncio.gather(*waiting) == [None] * (MAX_PENDING + 1)
    assert sorted(sandbox.checked) == sorted(names)
    assert await checker._find_fault("one more", "p", 0) is None


@pytest.mark.parametrize(
    "end", [RanOutOfMemory("x"), Crashed("x"), TookTooLong("x", is_proven=True)], ids=lambda end: type(end).__name__
)
async def test_a_grammar_that_ends_its_process_is_refused_and_not_tried_again(end: SandboxError) -> None:
    sandbox = InlineSandbox()
    checker = GrammarChecker(tokenizer(), sandbox)
    sandbox.failures = [end]
    for _ in range(2):
        with pytest.raises(ApiError) as refused:
            await checker.compile(REQUEST, [CONSTRAINT])
        assert (refused.value.status, refused.value.param) == (400, "a.param")
        assert "more work than this server allows" in refused.value.message
    assert len(sandbox.tenants) == 1


@pytest.mark.parametrize(
    ("end", "status"),
    [(Killed("x"), 503), (TookTooLong("x", is_proven=False), 503), (SandboxFull("x"), 429)],
    ids=lambda value: str(value),
)
async def test_an_end_that_proves_nothing_is_not_remembered(end: SandboxError, status: int) -> None:
    """The kernel's OOM killer, a stopped process and a full sandbox say nothing about the grammar."""
    sandbox = InlineSandbox()
    checker = GrammarChecker(tokenizer(), sandbox)
    sandbox.failures = [end]
    with pytest.raises(ApiError) as refused:
        await checker.compile(REQUEST, [CONSTRAINT])
    assert refused.value.status == status and "retry-after" in refused.value.headers
    assert await checker.compile(REQUEST, [CONSTRAINT]) is not None


async def test_a_check_is_charged_to_its_tenant() -> None:
    sandbox = InlineSandbox()
    await GrammarChecker(tokenizer(), sandbox).compile(REQUEST, [CONSTRAINT], tenant=7)
    assert sandbox.tenants == [7]


async def test_a_failed_preparation_is_tried_again_by_the_next_check() -> None:
    class Late(InlineSandbox):
        num_calls = 0

        async def prepare(self, name: str, function: Any, *args: Any) -> None:
            self.num_calls += 1
            if self.num_calls == 1:
                raise Killed("x")
            await super().prepare(name, function, *args)

    checker = GrammarChecker(tokenizer(), Late())
    with pytest.raises(ApiError):
        await checker.compile(REQUEST, [CONSTRAINT])
    assert await checker.compile(REQUEST, [CONSTRAINT]) is not None
