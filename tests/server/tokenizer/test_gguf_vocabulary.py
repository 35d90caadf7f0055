"""Tokenizers rebuilt from GGUF files encode exactly as the SentencePiece models that the files were made from."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from server.tokenizer.config_files import NoTokenizerError, TokenizerError
from server.tokenizer.gguf_vocabulary import scores_of_merges
from server.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tests.support.checkpoints.gguf import vocabulary_fields, write_fields
from tests.support.checkpoints.mistral_tokenizers import V1, V3
from tests.support.checkpoints.rebuilt_tokenizers import assert_equal_tokenizers, random_texts
from tests.support.paths import DEMO, ROOT

TEXTS = [
    "Hello, world!",
    "  two  spaces and\n\n\ttabs ",
    "naïve café, Ελληνικά, 漢字かな, \U0001f642 and \u200b",
    "[INST] not a control token [/INST]</s>",
    "",
    " ",
    "12345 6789 x=3.14;",
    (ROOT / "README.md").read_text()[:4000],
]


def write_vocabulary(path: Path, model: Path, /, **changes: Any) -> Path:
    """Write the pieces of a SentencePiece model as llama.cpp's converter does. Changes: fields; None removes one."""
    named = {name if "." in name else f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return write_fields(path, vocabulary_fields(model) | named)


def _checkpoint(path: Path, model: Path) -> Tokenizer:
    path.mkdir()
    (path / "tokenizer.model").write_bytes(model.read_bytes())
    (path / "tokenizer_config.json").write_text(f'{{"legacy": {"false" if model == V3 else "true"}}}')
    return load_tokenizer(path)


@pytest.mark.parametrize("model", [V1, V3, DEMO / "tokenizer.model"], ids=["v1", "v3", "demo"])
def test_the_rebuilt_tokenizer_gives_the_same_ids_and_texts(model: Path, tmp_path: Path, scale: int) -> None:
    original = _checkpoint(tmp_path / "original", model)
    rebuilt = load_tokenizer(write_vocabulary(tmp_path / "a.gguf", model))
    assert_equal_tokenizers(rebuilt, original, [*TEXTS, *random_texts(random.Random(0), original, 200 * scale)])


def test_tokens_that_were_added_cut_a_text_as_in_the_checkpoint(tmp_path: Path) -> None:
    """llama.cpp's converter gives them the score -1000; those of the model file, such as the line break, do not cut."""
    model = DEMO / "tokenizer.model"
    fields = vocabulary_fields(model)
    tokens, scores, types = (list(fields[f"tokenizer.ggml.{name}"]) for name in ("tokens", "scores", "token_type"))
    added = {"<think>": len(tokens), "<call>": len(tokens) + 1}
    gguf = write_vocabulary(
        tmp_path / "a.gguf",
        model,
        tokens=[*tokens, *added],
        scores=[*scores, -1000.0, -1000.0],
        token_type=[*types, 4, 4],
    )
    _checkpoint(tmp_path / "original", model)
    (tmp_path / "original" / "added_tokens.json").write_text(json.dumps(added))
    original, rebuilt = load_tokenizer(tmp_path / "original"), load_tokenizer(gguf)
    rng = random.Random(1)
    parts = [*added, " ", "hello", " the sea", "\n", "a<", "think>", "</s>"]
    for text in ("".join(rng.choices(parts, k=6)) for _ in range(300)):
        assert rebuilt.encode(text) == original.encode(text), text
        assert rebuilt.encode_with_specials(text) == original.encode_with_specials(text), text
    assert rebuilt.special_token_id("<think>") is None


def test_merges_replace_equal_scores(tmp_path: Path) -> None:
    """Some files have a score of 0 for every token, and the pairs in the order of the original scores."""
    original = load_tokenizer(write_vocabulary(tmp_path / "a.gguf", V1))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(V1))
    score_of = {pieces.id_to_piece(i): pieces.get_score(i) for i in range(259, pieces.vocab_size())}
    ranked = [
        (-score, f"{piece[:cut]} {piece[cut:]}")
        for piece, score in score_of.items()
        for cut in range(1, len(piece))
        if piece[:cut] in score_of and piece[cut:] in score_of
    ]
    merges = [pair for _, pair in sorted(ranked, key=lambda item: item[0])]
    equal = [0.0] * pieces.vocab_size()
    rebuilt = load_tokenizer(write_vocabulary(tmp_path / "b.gguf", V1, scores=equal, merges=merges))
    for text in [*TEXTS, *random_texts(random.Random(0), original, 100)]:
        assert rebuilt.encode(text) == original.encode(text)


def test_the_first_merge_that_makes_a_piece_gives_its_score() -> None:
    assert scores_of_merges(["abc", "xy", "q"], ["ab c", "x y", "a bc"]) == [0, -1, -3]


def test_the_template_comes_from_the_file(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "a.gguf", V1, **{"tokenizer.chat_template": "{{ messages }}"})
    assert load_tokenizer(path).chat_template == "{{ messages }}"
    assert load_tokenizer(write_vocabulary(tmp_path / "b.gguf", V1)).chat_template is None


def test_tokens_that_the_file_names_are_control_tokens(tmp_path: Path) -> None:
    """Files of chat models may give their end-of-turn token the type of plain text."""
    tokenizer = load_tokenizer(write_vocabulary(tmp_path / "a.gguf", V1, eot_token_id=22557))
    assert tokenizer.is_special(22557) and tokenizer.eos_ids == (2, 22557)
    assert 22557 not in tokenizer.encode(tokenizer.token_text(22557).strip())


def test_flags_of_the_file_are_followed(tmp_path: Path) -> None:
    usual = load_tokenizer(write_vocabulary(tmp_path / "a.gguf", V1))
    bare = load_tokenizer(write_vocabulary(tmp_path / "b.gguf", V1, add_bos_token=False, add_space_prefix=False))
    assert usual.encode("Hello") == [usual.bos_id, *bare.encode(" Hello")]
    assert bare.token_text(bare.encode("Hello")[0])[0] == "H"


def test_a_file_without_a_vocabulary_has_no_tokenizer(tmp_path: Path) -> None:
    file = write_vocabulary(tmp_path / "a.gguf", V1, model=None, tokens=None)
    with pytest.raises(NoTokenizerError, match=r"a\.gguf: no tokenizer \("):
        load_tokenizer(file)


DEFECTS: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"model": "bert"}, "supported are 'llama'"),
    "no tokens": ({"tokens": None}, "tokens has 0 tokens"),
    "no types": ({"token_type": None}, "token_type is missing"),
    "fewer types": ({"token_type": [1, 2]}, "token_type has 2 elements for"),
    "fewer scores": ({"scores": [1.0]}, "scores has 1 elements for"),
    "no scores": ({"scores": None}, "merges is missing"),
    "a score of NaN": ({"scores": [float("nan")] * 32000}, "not a number|are all equal"),
    "an id too high": ({"bos_token_id": 32000}, "bos_token_id is 32000"),
    "a wrong type": ({"token_type": [7] * 32000}, "token_type contains 7"),
    "tokens twice": ({"tokens": ["a"] * 32000}, "not a SentencePiece model"),
    "a long token": ({"tokens": ["a" * 2000, *map(str, range(31999))]}, "2000 characters"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_an_unusable_vocabulary_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    changes, pattern = DEFECTS[name]
    with pytest.raises(TokenizerError, match=pattern) as caught:
        load_tokenizer(write_vocabulary(tmp_path / "a.gguf", V1, **changes))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
