"""The vocabulary of Mistral Nemo, as tokenizer.json, as GGUF file and as tekken.json, gives mistral-common's ids."""

import base64
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tokenizers import Tokenizer as JsonTokenizer

from server.chat.template import ChatTemplate
from server.tokenizer.tokenizer import Tokenizer, TokenizerError, load_tokenizer
from tests.server.chat.test_mistral_format import mistral_ids
from tests.server.chat.test_template import conversation
from tests.support.checkpoints.byte_level import TEKKEN_FILE, cut_tekken, tekken, vocabulary_fields
from tests.support.checkpoints.gguf import write_fields
from tests.support.paths import ROOT

NUM_IDS = 131_072


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tekkenizer]:
    return tekken(tmp_path_factory.mktemp("tekken"))


@pytest.fixture(scope="module", params=["tokenizer.json", "GGUF", "tekken.json"])
def ours(request: pytest.FixtureRequest, files: tuple[Path, Tekkenizer]) -> Tokenizer:
    path, _ = files
    if request.param == "tokenizer.json":
        return load_tokenizer(path)
    if request.param == "tekken.json":
        (path / "alone").mkdir()
        shutil.copy(TEKKEN_FILE, path / "alone" / "tekken.json")
        return load_tokenizer(path / "alone")
    fields = vocabulary_fields(JsonTokenizer.from_file(str(path / "tokenizer.json")), "tekken")
    fields |= {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    return load_tokenizer(write_fields(path / "tekken.gguf", fields))


def _texts(tokenizer: Tokenizer, count: int) -> list[str]:
    """Return texts of the repository, of random characters and of random tokens."""
    rng = random.Random()
    drawn = [
        "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x20, 0xD800)))) for _ in range(60))
        for _ in range(count)
    ]
    joined = ["".join(tokenizer.token_text(rng.randrange(1000, NUM_IDS)) for _ in range(30)) for _ in range(count)]
    return [(ROOT / "README.md").read_text(), *drawn, *joined, *(_run(rng) for _ in range(10 * count))]


def _run(rng: random.Random) -> str:
    """Return a repeated part between others: there the same piece can be merged at several places."""
    parts = ["".join(rng.choices("abAB \t=-/", k=rng.randint(1, 3))) for _ in range(3)]
    return rng.choice(parts) + parts[0] * rng.randint(2, 40) + rng.choice(parts) + parts[1] * rng.randint(0, 20)


def test_ids_and_bytes_are_those_of_the_original(ours: Tokenizer, files: tuple[Path, Tekkenizer], scale: int) -> None:
    _, original = files
    assert (ours.vocab_size, ours.bos_id, ours.eos_ids) == (NUM_IDS, original.bos_id, (original.eos_id,))
    for text in _texts(ours, 200 * scale):
        assert ours.encode(text, add_special_tokens=False) == original.encode(text, bos=False, eos=False)
    for token_id in range(1000, NUM_IDS, 7):
        assert ours.token_bytes(token_id) == original.id_to_byte_piece(token_id, SpecialTokenPolicy.KEEP)
    specials = [original.id_to_piece(i) for i in range(1000)]
    assert ours.encode_with_specials("".join(specials)) == list(range(1000))
    assert ours.special_spellings == frozenset(specials)


def test_without_a_template_a_conversation_has_the_ids_of_the_original(ours: Tokenizer) -> None:
    oracle = MistralTokenizer.v3(is_tekken=True)
    turns = [("system", "Be brief."), ("user", " Hello [INST]"), ("assistant", "Grüße "), ("user", "🙂")]
    assert ChatTemplate(None, ours).render(conversation(*turns)) == mistral_ids(oracle, turns)


@pytest.mark.parametrize(("version", "number"), [("v3", 3), ("v7", 7), ("v15", 15)])
def test_a_file_of_any_size_and_version_has_the_ids_of_the_original(version: str, number: int, tmp_path: Path) -> None:
    file = cut_tekken(tmp_path, version)
    original, ours = Tekkenizer.from_file(file), load_tokenizer(tmp_path)
    assert (ours.vocab_size, ours.version, ours.bos_id, ours.eos_ids) == (4000, number, 1, (2,))
    assert [ours.token_bytes(i) for i in range(4000)] == [
        original.id_to_byte_piece(i, SpecialTokenPolicy.KEEP) for i in range(4000)
    ]
    for text in _texts_of(ours, 100):
        assert ours.encode(text) == original.encode(text, bos=True, eos=False)
        assert not any(ours.is_special(i) for i in ours.encode(text)[1:])


def _texts_of(tokenizer: Tokenizer, count: int) -> list[str]:
    rng = random.Random()
    texts = ["".join(tokenizer.token_text(rng.randrange(4000)) for _ in range(30)) for _ in range(count)]
    return ["</s>[INST]<SPECIAL_999> Hi", *texts, *(_run(rng) for _ in range(count))]


def test_files_of_json_beside_it_are_read_too(tmp_path: Path) -> None:
    cut_tekken(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    ours = load_tokenizer(tmp_path)
    assert (ours.eos_ids, ours.chat_template) == ((2, 5), "{{ messages }}")


def _piece(content: dict[str, Any], number: int, **changes: object) -> None:
    content["vocab"][number] |= changes


DEFECTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no config": (lambda content: content.pop("config"), "config is missing"),
    "another version": (lambda content: content["config"].update(version="v99"), "config.version is 'v99'; supported"),
    "no pattern": (lambda content: content["config"].pop("pattern"), "config.pattern is not a text"),
    "a wrong pattern": (lambda content: content["config"].update(pattern="("), "not a usable tokenizer"),
    "too many ids": (lambda content: content["config"].update(default_vocab_size=2**30), "not an integer from 1256 to"),
    "too few ids": (lambda content: content["config"].update(default_vocab_size=1100), "not an integer from 1256 to"),
    "no number": (lambda content: content["config"].update(default_num_special_tokens="7"), "is '7', not an integer"),
    "too few pieces": (lambda content: content["vocab"].__delitem__(slice(300, None)), "vocab has no 3000 pieces"),
    "another rank": (lambda content: _piece(content, 7, rank=8), "piece 7 has no bytes, or another rank"),
    "no base64": (lambda content: _piece(content, 300, token_bytes="?"), "piece 300 is not valid base64"),
    "an empty piece": (lambda content: _piece(content, 300, token_bytes=""), "piece 300 has 0 bytes"),
    "a long piece": (
        lambda content: _piece(content, 300, token_bytes=base64.b64encode(bytes(2000)).decode()),
        "piece 300 has 2000 bytes",
    ),
    "a piece twice": (lambda content: _piece(content, 300, token_bytes="AA=="), "a piece occurs twice"),
    "a byte is missing": (lambda content: _piece(content, 0, token_bytes="AAA="), "1 of the 256 bytes have no token"),
    "special tokens of another type": (lambda content: content.update(special_tokens=5), "special_tokens is missing"),
    "one without a text": (
        lambda content: content.update(special_tokens=[{"rank": 0, "token_str": None}]),
        "special token 0 has no text",
    ),
    "no end": (
        lambda content: content.update(special_tokens=[{"rank": 0, "token_str": "<s>"}]),
        "or </s> is missing",
    ),
    "more special tokens than ids": (
        lambda content: content["config"].update(default_num_special_tokens=19, default_vocab_size=300),
        "20 special tokens, but default_num_special_tokens is 19",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_damaged_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    change, pattern = DEFECTS[name]
    file = cut_tekken(tmp_path)
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=pattern) as caught:
        load_tokenizer(tmp_path)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_later_version_has_to_list_its_control_tokens(tmp_path: Path) -> None:
    file = cut_tekken(tmp_path)
    file.write_text(file.read_text().replace('"version": "v3"', '"version": "v11"'))
    with pytest.raises(TokenizerError, match="special_tokens is missing"):
        load_tokenizer(tmp_path)
