"""server/tokenizer/encoders.py: plain text to ids, with each tokenizer file's own package as the oracle."""

import json
import re
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as JsonTokenizer
from transformers import LlamaTokenizer

from server.tokenizer.config_files import TokenizerError
from server.tokenizer.encoders import HfTokenizerEncoder, SentencePieceEncoder
from server.tokenizer.tokenizer import load_tokenizer
from tests.support.checkpoints.mistral_tokenizers import V1, checkpoint

CONTROL_TOKENS = re.compile("<(?:unk|s|/s)>")  # the package recognizes them in plain text
# SentencePiece writes a space as U+2581, so this one character is not preserved.
TEXTS = st.text(max_size=40).filter(lambda text: "\u2581" not in text and not CONTROL_TOKENS.search(text))


@pytest.fixture(scope="module")
def json_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The v1 tokenizer as a tokenizer.json alone, as transformers saves it."""
    source = checkpoint(tmp_path_factory.mktemp("source"), tokenizer_config={"bos_token": "<s>", "eos_token": "</s>"})
    path = Path(tmp_path_factory.mktemp("json"))
    LlamaTokenizer.from_pretrained(source).save_pretrained(path)
    (path / "tokenizer.model").unlink(missing_ok=True)
    return path


@given(texts=st.lists(TEXTS, min_size=10, max_size=10))
@settings(max_examples=10, deadline=None)
def test_tokenizer_json_gives_the_ids_of_its_own_package(json_checkpoint: Path, texts: list[str]) -> None:
    ours, oracle = load_tokenizer(json_checkpoint), JsonTokenizer.from_file(str(json_checkpoint / "tokenizer.json"))
    for text in texts:
        assert ours.encode(text, add_special_tokens=False) == oracle.encode(text, add_special_tokens=False).ids
    assert not any(ours.is_special(i) for i in ours.encode("<s></s>", add_special_tokens=False))
    assert ours.encode_with_specials("<s>a</s>")[::2] == [1, 2]
    assert ours.decode(ours.encode("Gr\u00fc\u00dfe  \U0001f600")) == "Gr\u00fc\u00dfe  \U0001f600"


def test_both_kinds_of_files_have_the_same_pieces_and_ids_with_and_without_prefix(json_checkpoint: Path) -> None:
    file = json_checkpoint / "tokenizer.json"
    by_model, by_json = SentencePieceEncoder(V1), HfTokenizerEncoder(file, json.loads(file.read_text()))
    assert by_model.pieces == by_json.pieces
    assert (by_model.bos_id, by_model.eos_id) == (by_json.bos_id, by_json.eos_id)
    for with_prefix in (True, False):
        for text in ("Hello", "a small text\n", "\U0001f600"):
            assert by_model.encode(text, with_prefix=with_prefix) == by_json.encode(text, with_prefix=with_prefix)


def test_without_an_unk_token_in_the_file_the_piece_none_is_an_ordinary_token(json_checkpoint: Path) -> None:
    content = json.loads((json_checkpoint / "tokenizer.json").read_text())
    assert content["model"]["unk_token"] is None
    ours = load_tokenizer(json_checkpoint)
    assert ours.special_token_id("None") is None
    assert ours.decode(ours.encode("(None)")) == "(None)"


def test_the_prefix_is_one_space_in_front_of_the_text() -> None:
    encoder = SentencePieceEncoder(V1)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(V1))
    assert encoder.has_dummy_prefix
    assert encoder.encode("Hello", with_prefix=True) == processor.encode("Hello")
    assert encoder.encode(" Hello", with_prefix=False) == processor.encode("Hello")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x01\x02",
        V1.read_bytes()[:-1],
        b"version https://git-lfs.github.com/spec/v1\n",
        b"<html>not found</html>",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_damaged_model_file_gives_one_line_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        SentencePieceEncoder(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", ["{}", '{"model": {"type": "WordPiece"}}', '{"model": {"byte_fallback": true}}'])
def test_a_json_file_of_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
