"""Tokenizers that transformers 5 saved: rules and added tokens are in tokenizer.json alone, with a tokenizer.model or
without. The package that reads this file is the oracle."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as JsonTokenizer
from transformers import AddedToken, LlamaTokenizer

from server.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tests.support.paths import DEMO

MARK, THINK, CALL = "<|im_start|>", "<think>", "<call>"  # a control token, and plain ones
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
PREPENDED = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, REPLACE]}


DOUBLED = {"type": "Replace", "pattern": {"Regex": "\\A\u2581"}, "content": "\u2581\u2581"}
DOUBLING = {"type": "Sequence", "normalizers": [REPLACE, DOUBLED]}  # as transformers 5 converts a tokenizer.model


def metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}


RULES: dict[str, dict[str, Any]] = {
    "prepend": {"normalizer": PREPENDED, "pre_tokenizer": None},
    "always": {"normalizer": None, "pre_tokenizer": metaspace("always")},
    "first": {"normalizer": None, "pre_tokenizer": metaspace("first")},
    "never": {"normalizer": None, "pre_tokenizer": metaspace("never")},
    "doubling, always": {
        "normalizer": DOUBLING,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [metaspace("always")]},
    },
    "doubling, first": {
        "normalizer": DOUBLING,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [metaspace("first")]},
    },
    "sequence, always": {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [metaspace("always")]},
    },
    "sequence, first": {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [metaspace("first")]},
    },
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled tokenizer with further tokens, as transformers saves it."""
    source, path = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("saved")
    shutil.copy(DEMO / "tokenizer.model", source)
    (source / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}')
    tokenizer = LlamaTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": [MARK]})
    tokenizer.add_tokens([AddedToken(THINK, normalized=True, special=False), AddedToken(CALL, normalized=False)])
    tokenizer.save_pretrained(path)
    assert "added_tokens_decoder" not in json.loads((path / "tokenizer_config.json").read_text())
    return path


def changed(saved: Path, path: Path, *, has_model: bool, **fields: Any) -> tuple[Tokenizer, JsonTokenizer]:
    """Return the tokenizer with other rules in its tokenizer.json, and the package's."""
    shutil.copytree(saved, path, dirs_exist_ok=True)
    if has_model:
        shutil.copy(DEMO / "tokenizer.model", path)
    file = path / "tokenizer.json"
    content = json.loads(file.read_text()) | fields
    if content["normalizer"] == DOUBLING:  # with which a normalized token is refused
        content["added_tokens"] = [{**token, "normalized": False} for token in content["added_tokens"]]
    file.write_text(json.dumps(content))
    return load_tokenizer(path), JsonTokenizer.from_file(str(file))


def rendered_texts(rng: random.Random, count: int) -> list[str]:
    """Return texts as templates render them: with control tokens and added tokens in them."""
    parts = ["<s>", "</s>", MARK, THINK, CALL, " ", "  ", "hello", " hi", "the sea", "\n", "a ", "x<", "[INST]"]
    return ["".join(rng.choices(parts, k=rng.randint(1, 7))) for _ in range(count)]


@pytest.mark.parametrize("has_model", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_ids_are_those_of_the_file_around_control_and_added_tokens(
    rule: str, has_model: bool, saved: Path, tmp_path: Path
) -> None:
    if has_model and rule == "never":
        return  # the model file puts a space in front of a text
    ours, oracle = changed(saved, tmp_path, has_model=has_model, **RULES[rule])
    for text in rendered_texts(random.Random(rule), 300):
        expected = oracle.encode(text, add_special_tokens=False).ids
        assert ours.encode_with_specials(text) == expected, text
    assert ours.special_token_id(MARK) is not None and ours.special_token_id(THINK) is None
    assert ours.vocab_size == oracle.get_vocab_size()
    assert ours.decode(ours.encode("hello")) == "hello"


@pytest.mark.parametrize("adds_bos", [True, False])
def test_the_files_template_says_whether_a_text_begins_with_the_start_token(
    adds_bos: bool, saved: Path, tmp_path: Path
) -> None:
    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, text] if adds_bos else [text]
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    ours, oracle = changed(saved, tmp_path, has_model=False, post_processor=template)
    assert ours.encode("hello") == oracle.encode("hello").ids
    assert (ours.encode("hello")[0] == ours.bos_id) == adds_bos
