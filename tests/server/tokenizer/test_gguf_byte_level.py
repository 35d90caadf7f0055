"""Byte-level vocabularies of GGUF files encode as the tokenizer.json that they were made from."""

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as JsonTokenizer
from tokenizers import normalizers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from server.tokenizer.config_files import TokenizerError
from server.tokenizer.tokenizer import load_tokenizer
from tests.support.checkpoints.byte_level import (
    BOS,
    CONTROL,
    END,
    LLAMA_3_PATTERN,
    PLAIN_ADDED,
    TURN_END,
    save,
    trained,
    vocabulary_fields,
)
from tests.support.checkpoints.gguf import write_fields
from tests.support.checkpoints.rebuilt_tokenizers import assert_equal_tokenizers, random_texts
from tests.support.paths import ROOT

TEXTS = [
    "Hello, world! It's 12345678 o'clock, I'LL say.",
    "  two  spaces and\n\n\ttabs \r\n",
    "naïve café, cafe\u0301, Ελληνικά, 漢字かな, \U0001f642 and \u200b",
    f"a{TURN_END}b{BOS}c{END} {PLAIN_ADDED}d",
    "https://a.b/c//d/\n/e",
    "",
    (ROOT / "README.md").read_text()[:4000],
]


@pytest.fixture(scope="module")
def llama_3() -> JsonTokenizer:
    return trained()


def write(path: Path, tokenizer: JsonTokenizer, /, pre: str = "llama-bpe", **changes: Any) -> Path:
    """Write a vocabulary as llama.cpp's converter does. Changes: fields; None removes one."""
    named = {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return write_fields(path, vocabulary_fields(tokenizer, pre) | named)


def _original(pre: str) -> JsonTokenizer:
    if pre not in ("gpt-2", "qwen2", "smaug-bpe"):
        return trained(LLAMA_3_PATTERN)
    pattern = {"gpt-2": None, "qwen2": PRETOKENIZE_REGEX, "smaug-bpe": LLAMA_3_PATTERN}[pre]
    tokenizer = trained(pattern, keeps_words=False)
    tokenizer.post_processor = None  # they put nothing in front of a text
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


@pytest.mark.parametrize("pre", ["llama-bpe", "llama3", "llama-v3", "smaug-bpe", "qwen2", "gpt-2"])
def test_the_rebuilt_tokenizer_gives_the_same_ids_and_texts(pre: str, tmp_path: Path, scale: int) -> None:
    oracle = _original(pre)
    original = load_tokenizer(save(oracle, tmp_path / "original"))
    rebuilt = load_tokenizer(write(tmp_path / "a.gguf", oracle, pre))
    assert_equal_tokenizers(rebuilt, original, [*TEXTS, *random_texts(random.Random(), original, 200 * scale)])


@pytest.mark.parametrize("pre", [None, "default"])
def test_files_that_name_no_rule_have_llama_3s_if_they_have_its_control_tokens(
    pre: Any, llama_3: JsonTokenizer, tmp_path: Path
) -> None:
    text = "1234567 A\n\nB"
    assert load_tokenizer(write(tmp_path / "a.gguf", llama_3, pre=pre)).encode(text) == llama_3.encode(text).ids
    tokens = vocabulary_fields(llama_3, "")["tokenizer.ggml.tokens"]
    tokens = ["<|endoftext|>" if token == BOS else token for token in tokens]
    with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.pre is .*; supported are llama-bpe"):
        load_tokenizer(write(tmp_path / "b.gguf", llama_3, pre=pre, tokens=tokens))


def test_marks_of_turns_are_control_tokens_whatever_their_types(llama_3: JsonTokenizer, tmp_path: Path) -> None:
    types = [4 if kind == 3 else kind for kind in vocabulary_fields(llama_3, "")["tokenizer.ggml.token_type"]]
    tokenizer = load_tokenizer(write(tmp_path / "a.gguf", llama_3, token_type=types))
    assert tokenizer.special_spellings == frozenset(CONTROL)


def test_flags_and_named_tokens_of_the_file_are_followed(llama_3: JsonTokenizer, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path / "a.gguf", llama_3, add_bos_token=False, eot_token_id=300))
    assert tokenizer.encode("Hello")[0] != tokenizer.bos_id and tokenizer.bos_id == llama_3.token_to_id(BOS)
    assert tokenizer.is_special(300)
    ends = llama_3.token_to_id(END), 300, llama_3.token_to_id(TURN_END)
    assert tokenizer.eos_ids == ends


def test_unused_tokens_are_no_text(llama_3: JsonTokenizer, tmp_path: Path) -> None:
    fields = vocabulary_fields(llama_3, "llama-bpe")
    fields["tokenizer.ggml.tokens"] += ["[PAD1]", "[PAD2]"]
    fields["tokenizer.ggml.token_type"] += [5, 5]
    tokenizer = load_tokenizer(write_fields(tmp_path / "a.gguf", fields))
    assert tokenizer.encode("[PAD1]") == llama_3.encode("[PAD1]").ids
    assert tokenizer.decode([len(fields["tokenizer.ggml.tokens"]) - 1]) == ""


DEFECTS: dict[str, tuple[dict[str, Any], str]] = {
    "another rule": (
        {"pre": "viking"},
        r"tokenizer\.ggml\.pre is 'viking'; supported are llama-bpe, .*tokenizer\.json",
    ),
    "no merges": ({"merges": None}, "merges is missing"),
    "unknown merges": ({"merges": ["qqq zzz"]}, "not a usable tokenizer"),
    "no types": ({"token_type": None}, "token_type is missing"),
    "an id too high": ({"bos_token_id": 32000}, "bos_token_id is 32000"),
    "tokens twice": ({"tokens": ["a"] * 1006}, "occurs twice"),
    "a kind without a name": ({"model": "bert"}, "supported are 'llama'"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_an_unusable_vocabulary_is_refused_in_one_line(name: str, llama_3: JsonTokenizer, tmp_path: Path) -> None:
    changes, pattern = DEFECTS[name]
    with pytest.raises(TokenizerError, match=pattern) as caught:
        load_tokenizer(write(tmp_path / "a.gguf", llama_3, **changes))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
