"""Byte-level vocabularies: ids, texts and bytes are those of the packages that made the tokenizer.json."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as JsonTokenizer
from transformers import AutoTokenizer

from server.errors import ApiError
from server.tokenizer.byte_level import ByteLevelEncoder
from server.tokenizer.config_files import TokenizerError
from server.tokenizer.detokenizer import Detokenizer
from server.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tests.support.checkpoints.byte_level import BOS, CONTROL, END, PLAIN_ADDED, TURN_END, save, trained
from tests.support.paths import ROOT

ANY_ADDED = re.compile("|".join(map(re.escape, (*CONTROL, PLAIN_ADDED))))
CHARACTERS = st.characters(exclude_categories=["Cs"])
WORDS = st.sampled_from(
    ["It's", " the", "DON'T", "1234567", "\r\n\n", "   ", "\t", "naïve", "漢字", "\U0001f642", "://"]
)
TEXTS = st.lists(st.text(CHARACTERS, max_size=8) | WORDS, max_size=8).map("".join)


@pytest.fixture(scope="module")
def oracle() -> JsonTokenizer:
    return trained()


@pytest.fixture(scope="module")
def path(oracle: JsonTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(oracle, tmp_path_factory.mktemp("byte-level"))


@pytest.fixture(scope="module")
def ours(path: Path) -> Tokenizer:
    return load_tokenizer(path)


@given(text=TEXTS)
@settings(max_examples=300)
def test_plain_text_has_the_ids_of_the_package_and_its_own_bytes(
    text: str, ours: Tokenizer, oracle: JsonTokenizer
) -> None:
    ids = ours.encode(text, add_special_tokens=False)
    if not ANY_ADDED.search(text):
        assert ids == oracle.encode(text, add_special_tokens=False).ids
    assert b"".join(map(ours.token_bytes, ids)) == text.encode()
    assert ours.decode(ids) == text


@given(parts=st.lists(TEXTS | st.sampled_from([*CONTROL, PLAIN_ADDED]), max_size=8))
@settings(max_examples=200)
def test_control_tokens_of_a_rendered_template_have_the_ids_of_the_package(
    parts: list[str], ours: Tokenizer, oracle: JsonTokenizer
) -> None:
    text = "".join(parts)
    assert ours.encode_with_specials(text) == oracle.encode(text, add_special_tokens=False).ids


def test_plain_text_that_spells_control_tokens_has_none(ours: Tokenizer, oracle: JsonTokenizer) -> None:
    text = f"a{TURN_END}b {''.join(CONTROL)}{TURN_END[:-1]}"
    ids = ours.encode(text, add_special_tokens=False)
    without_added = json.loads(oracle.to_str()) | {"added_tokens": [], "post_processor": None}
    assert ids == JsonTokenizer.from_str(json.dumps(without_added)).encode(text).ids
    assert not any(map(ours.is_special, ids)) and ours.decode(ids) == text
    assert ours.special_spellings == frozenset(CONTROL)


def test_gpt_2_words_and_merged_words(tmp_path: Path) -> None:
    oracle = trained(None, keeps_words=False)
    tokenizer = load_tokenizer(save(oracle, tmp_path))
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert tokenizer.encode(text) == oracle.encode(text).ids  # no bos: the file has no rule for one


@pytest.mark.parametrize("config", [{}, {"add_bos_token": False}, {"add_bos_token": True}], ids=str)
def test_bos_is_added_as_the_file_or_its_config_says(oracle: JsonTokenizer, tmp_path: Path, config: Any) -> None:
    tokenizer = load_tokenizer(save(oracle, tmp_path, **config))
    has_bos = config.get("add_bos_token", True)
    assert (tokenizer.encode("Hello")[0] == tokenizer.bos_id) is has_bos
    if not config:
        assert tokenizer.encode("Hello") == AutoTokenizer.from_pretrained(tmp_path)("Hello")["input_ids"]


@given(data=st.data())
@settings(max_examples=200)
def test_a_stream_of_any_tokens_is_their_text(data: st.DataObject, ours: Tokenizer, oracle: JsonTokenizer) -> None:
    """Single bytes are tokens: characters come in pieces, and may never be completed."""
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=30))
    parts = data.draw(st.lists(st.integers(1, 4), min_size=len(ids), max_size=len(ids)))
    stream, text, start = Detokenizer(ours), "", 0
    for length in parts:
        text += stream.push(ids[start : start + length])
        start += length
    assert text + stream.finish() == ours.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


def test_answers_end_at_the_ends_of_texts_and_turns(ours: Tokenizer, oracle: JsonTokenizer) -> None:
    assert ours.bos_id == oracle.token_to_id(BOS)
    assert set(ours.eos_ids) == {oracle.token_to_id(END), oracle.token_to_id(TURN_END)}
    assert ours.eos_ids[0] == oracle.token_to_id(END)


def test_an_added_token_is_its_text_and_not_in_the_alphabet_of_bytes(tmp_path: Path) -> None:
    """Files may list an added token among the pieces too. "é" among the pieces would be the byte E9."""
    content = json.loads(trained().to_str())
    vocabulary, own_id = content["model"]["vocab"], 300
    moved = next(piece for piece, token_id in vocabulary.items() if token_id == own_id)
    last = content["added_tokens"][-1]
    vocabulary |= {moved: last["id"] + 1, "é!é": own_id}
    content["added_tokens"].insert(0, last | {"id": own_id, "content": "é!é"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("xé!éy", add_special_tokens=False)
    assert own_id in ids and tokenizer.decode(ids) == "xé!éy"
    assert tokenizer.token_bytes(own_id) == "é!é".encode()


def test_a_piece_that_is_a_control_token_is_merged_from_no_text(tmp_path: Path) -> None:
    """The file may name a piece as a control token from which others are merged."""
    content = json.loads(trained().to_str())
    piece, token_id = next((p, i) for p, i in content["model"]["vocab"].items() if p == "the")
    content["added_tokens"].append(content["added_tokens"][0] | {"id": token_id, "content": piece})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    for text in ("the", "the other then", "the" * 5_000):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert token_id not in ids and tokenizer.decode(ids) == text


def test_a_piece_that_is_named_as_a_control_token_stays_text(tmp_path: Path) -> None:
    """Some files of Llama 3 pad with their first piece, "!"."""
    oracle = trained()
    tokenizer = load_tokenizer(save(oracle, tmp_path, pad_token="!"))
    text = "Hi! you!!" + "a !" * 5_000
    assert tokenizer.encode(text) == oracle.encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_added_token_of_the_config_that_renames_a_piece_is_its_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save(trained(), tmp_path, added_tokens_decoder={"300": {"content": "né"}}))
    ids = tokenizer.encode("né", add_special_tokens=False)
    assert ids == [300] and tokenizer.token_bytes(300) == "né".encode()


def test_marks_of_turns_are_control_tokens_although_the_file_says_text(tmp_path: Path) -> None:
    content = json.loads(trained().to_str())
    for token in content["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special_spellings == frozenset(CONTROL)
    assert tokenizer.special_token_id(TURN_END) in tokenizer.eos_ids
    assert not any(map(tokenizer.is_special, tokenizer.encode("".join(CONTROL), add_special_tokens=False)))


def test_a_text_on_which_the_word_rule_gives_up_is_refused(tmp_path: Path) -> None:
    content = json.loads(trained().to_str())
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a+)+$|."
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(ApiError, match="cannot split this text into words"):
        tokenizer.encode("a" * 30 + "!")
    assert tokenizer.decode(tokenizer.encode("aab")) == "aab"


def test_a_file_of_another_format_beside_it_is_not_in_the_way(path: Path, tmp_path: Path) -> None:
    """Meta's own tokenizer.model is tiktoken's."""
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    assert load_tokenizer(tmp_path).encode("Hello") == load_tokenizer(path).encode("Hello")


def test_long_texts_without_spaces_and_many_spelled_control_tokens_are_encoded(ours: Tokenizer) -> None:
    for part in [*"aA .\n漢1\u0301", TURN_END]:
        assert ours.decode(ours.encode(part * 50_000)) == part * 50_000


def _without(content: dict[str, Any], piece: str) -> None:
    del content["model"]["vocab"][piece]
    content["model"]["merges"] = [merge for merge in content["model"]["merges"] if piece not in "".join(merge)]


DEFECTS = {
    "a byte is missing": (lambda content: _without(content, "Ā"), "1 of the 256 bytes have no token"),
    "an unknown merge": (lambda content: content["model"]["merges"].append(["qqq", "zzz"]), "not a usable tokenizer"),
    "a negative id": (lambda content: content["model"]["vocab"].update(qqqq=-1), "token id -1"),
    "an id as text": (lambda content: content["model"]["vocab"].update(qqqq="1"), r"token id \(str\)"),
    "far ids": (lambda content: content["model"]["vocab"].update(qqqq=2**30), "far beyond"),
    "a broken expression": (
        lambda content: content["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="("),
        "not a usable tokenizer",
    ),
    "merges of three": (lambda content: content["model"]["merges"].append(["a", "b", "c"]), "not a usable|damaged"),
    "words of a list": (lambda content: content["pre_tokenizer"].update(pretokenizers=3), "only byte-pair"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_an_unusable_file_is_refused_in_one_line(name: str, path: Path, tmp_path: Path) -> None:
    change, pattern = DEFECTS[name]
    content = json.loads((path / "tokenizer.json").read_text())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=pattern) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path / "tokenizer.json") in str(caught.value)


def test_without_the_package_a_line_says_how_to_install_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: .* pip install 'smoe\[tokenizers\]'"):
        load_tokenizer(path)


def test_an_encoder_for_every_byte(path: Path) -> None:
    content = json.loads((path / "tokenizer.json").read_text())
    encoder = ByteLevelEncoder(path, content)
    single = {encoder.bytes_of_piece(piece) for piece in encoder.pieces if len(piece) == 1}
    assert single >= {bytes([byte]) for byte in range(256)}
