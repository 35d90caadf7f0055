"""Grammars for checkpoints of 101 tokens, whose vocabulary is made up here, and an engine that follows them."""

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llguidance
import msgspec

from engine.grammars.build_queue import GrammarQueue
from engine.grammars.matcher import GrammarCompiler
from engine.types import Request, Vocabulary
from smoe import LocalEngine, SamplingParams

VOCAB, END = 101, 2
NAMES = ("name", "unit", "count", "is_open", "city", "kind")
_CHARACTERS = "".join(sorted(set("".join(NAMES) + 'truefalsonpqkxz0123456789-{}[]",: _')))
_PIECES = ['{"', '":', '":"', ',"', '","', '"}', '":[', '},{"', "na", "me", "name", "ci", "ty", "city", "co", "cou"]
_PIECES += ["nt", "count", "is", "_o", "pe", "pen", "_open", "open", "ki", "nd", "kind", "un", "it", "unit", "tr", "ue"]
_PIECES += ["true", "fal", "se", "false", "12", "300", "one"]
_PIECES += [f'"{name}":' for name in NAMES[:4]]  # merges do not lead to these: tokens that are not the usual ones


def _vocabulary() -> Vocabulary:
    """Control tokens, characters, and pieces in the order of their merges; the rest never occurs in a text."""
    texts = ["<unk>", "<s>", "</s>", *_PIECES, *_CHARACTERS]
    assert len(set(texts)) == len(texts) <= VOCAB
    return Vocabulary([text.encode() for text in texts] + [b""] * (VOCAB - len(texts)), [0, 1, END])


VOCABULARY = _vocabulary()


class GrammarParams(SamplingParams, frozen=True):
    """Parameters of a completion with a grammar."""

    grammar: str = ""


class GrammarEngine(LocalEngine):
    """LocalEngine whose requests may have a grammar over the vocabulary of this module."""

    def __init__(self, model: str | Path, **settings: Any) -> None:
        super().__init__(model, **settings)
        self._engine._grammars = GrammarQueue(GrammarCompiler(VOCABULARY, VOCAB, (END,)), num_parsers=64)
        self._add, self._engine.add = self._engine.add, self._add_with_grammar  # type: ignore[method-assign]
        self._grammars: dict[int, str] = {}

    def add(self, prompt_token_ids: Sequence[int], params: SamplingParams | None = None, priority: int = 0) -> int:
        if isinstance(params, GrammarParams):
            self._grammars[self._next_id + 1] = params.grammar
        return super().add(prompt_token_ids, params, priority)

    def _add_with_grammar(self, request: Request) -> None:
        self._add(msgspec.structs.replace(request, grammar=self._grammars.get(request.request_id)))


def random_grammar(rng: random.Random) -> str:
    """Draw a grammar: a closed object, a list of them, a regular expression with long fixed parts, or any text."""
    kind = rng.choice(("object", "list", "pattern", "any"))
    if kind == "any":
        return serialized("start: /[a-z_0-9 ]*/")
    if kind == "pattern":
        return serialized(f"start: /(name|unit){rng.choice(NAMES)}(city|kind)( is_open [a-z]+, count [0-9]+)*/")
    schema = _object(rng)
    if kind == "list":
        schema = {"type": "array", "items": schema, "minItems": 3}
    options = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
    return serialized(f"start: %json {json.dumps({**schema, 'x-guidance': options})}")


def _object(rng: random.Random) -> dict[str, Any]:
    values: list[dict[str, Any]] = [
        {"type": "string", "pattern": "^[a-z]{1,5}$"},
        {"type": "integer", "minimum": 0, "maximum": 999},
        {"type": "boolean"},
        {"enum": ["one", "open", "count"]},
    ]
    names = rng.sample(NAMES, rng.randint(2, len(NAMES)))
    return {
        "type": "object",
        "properties": {name: rng.choice(values) for name in names},
        "required": names,
        "additionalProperties": False,
    }


def serialized(lark: str) -> str:
    """Return a grammar in Lark's notation as the server sends it."""
    grammar: str = llguidance.LLMatcher.grammar_from_lark(f'{lark}\n%llguidance {{"no_forcing": true}}\n')
    return grammar


def text_of(token_ids: Sequence[int]) -> str:
    """Return the text of generated tokens."""
    return b"".join(itertools.chain(VOCABULARY.tokens[token_id] for token_id in token_ids)).decode()
