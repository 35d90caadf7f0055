"""Texts to embed get the control tokens that transformers gives them; texts to continue never get an end token."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from server.tokenizer.tokenizer import load_tokenizer
from tests.support.checkpoints.mistral_tokenizers import v1_tokenizer, write_json_files

TEXT = "It is a truth"


@pytest.mark.parametrize("adds", [True, False])
def test_add_eos_token_decides(tmp_path: Path, adds: bool) -> None:
    tokenizer = v1_tokenizer(tmp_path, tokenizer_config={"add_eos_token": adds})
    ids = tokenizer.encode(TEXT)
    assert tokenizer.encode_to_embed(TEXT) == [*ids, *([2] if adds else [])]
    assert tokenizer.encode_to_embed(TEXT, add_special_tokens=False) == ids[1:]


def test_without_a_setting_a_sentencepiece_model_adds_no_end(tmp_path: Path) -> None:
    tokenizer = v1_tokenizer(tmp_path)
    assert tokenizer.encode_to_embed(TEXT) == tokenizer.encode(TEXT)


def small_vocabulary(path: Path, post_processor: object) -> Path:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "\u2581a"]
    path.mkdir(exist_ok=True)
    added = [{"id": i, "content": pieces[i], "special": True} | FLAGS for i in range(3)]
    description = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "post_processor": post_processor,
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "unk_token": "<unk>",
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": [["\u2581", "a"]],
        },
    }
    (path / "tokenizer.json").write_text(json.dumps(description))
    return write_json_files(
        path,
        tokenizer_config={
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        },
    )


FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
BOS, EOS = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("<s>", "</s>"))
SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}


def template(*single: object) -> dict[str, object]:
    ids = {"<s>": 1, "</s>": 2}
    special = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in ids.items()}
    return {"type": "TemplateProcessing", "single": single, "pair": [SEQUENCE], "special_tokens": special}


@pytest.mark.parametrize("single", [(BOS, SEQUENCE, EOS), (BOS, SEQUENCE)])
def test_the_post_processor_of_a_tokenizer_file_decides_as_in_transformers(
    tmp_path: Path, single: tuple[object, ...]
) -> None:
    path = small_vocabulary(tmp_path / "model", template(*single))
    tokenizer, oracle = load_tokenizer(path), AutoTokenizer.from_pretrained(path)
    for text in ("a", "ab a", "ü"):
        assert tokenizer.encode_to_embed(text) == oracle(text)["input_ids"]


def test_a_text_that_is_too_long_loses_its_end_and_keeps_its_control_tokens(tmp_path: Path) -> None:
    tokenizer = v1_tokenizer(tmp_path, tokenizer_config={"add_eos_token": True})
    [bos, *ids, eos] = tokenizer.encode_to_embed(TEXT)
    assert tokenizer.encode_to_embed(TEXT, max_tokens=4) == [bos, *ids[:2], eos]
    assert tokenizer.encode_to_embed(TEXT, max_tokens=100) == [bos, *ids, eos]
    assert tokenizer.encode_to_embed(TEXT, max_tokens=1) == [eos]
    assert tokenizer.encode_to_embed(TEXT, False, 2) == ids[:2]
