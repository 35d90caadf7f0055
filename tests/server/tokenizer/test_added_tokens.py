"""Flags of added tokens (lstrip, rstrip, single_word, normalized), with the package `tokenizers` as the oracle."""

import json
import random
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as JsonTokenizer
from transformers import LlamaTokenizer

from server.tokenizer import added_tokens
from server.tokenizer.added_tokens import AddedMatcher
from server.tokenizer.config_files import AddedToken as ConfiguredToken
from server.tokenizer.config_files import TokenizerError
from server.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tests.server.tokenizer.test_damaged_files import TOKENIZER
from tests.support.checkpoints.byte_level import trained
from tests.support.checkpoints.mistral_tokenizers import checkpoint, write_json_files

PLAIN = ("ab", "<tool>", "\u00e9t\u00e9", "a b", "\n\n", "_x")
SPECIAL = ("<|go|>", "<|stop|>")
# Control tokens are found first here, so that no text can hide one: they take white space that would be a token.
NEW = (
    "qqab",
    "<tool>",
    "\u00e9t\u00e9qq",
    "a b",
    "_xqq",
)  # no pieces of the model: those keep their ids in transformers
IN_TEMPLATES = tuple(text for text in PLAIN if not text.isspace())
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
# Letters, digits, marks and symbols that are and are not parts of words, and white space of every kind.
OTHERS = (
    *("a", "Z", "7", "_", ".", "-", "\u00e9", "e\u0301", "\u0301", "\u00b2", "\u24b6", "\u2160", "\u200d", "\u6f22"),
    *(" ", "  ", "\t", "\n", "\r\n", "\xa0", "\x1c", "\x85", "\u2003", "\u3000", "\u200b"),
)


def _drawn(rng: random.Random, text: str, is_special: bool = False) -> AddedToken:
    flags = {name: rng.random() < 0.4 for name in FLAGS}
    if is_special:
        flags |= {"single_word": False, "normalized": False}
    return AddedToken(text, special=is_special, **flags)


def _texts(rng: random.Random, parts: tuple[str, ...], count: int) -> Iterator[str]:
    for _ in range(count):
        yield "".join(rng.choice(rng.choice((parts, OTHERS))) for _ in range(rng.randint(1, 12)))


def _byte_level(path: Path, rng: random.Random, plain: tuple[str, ...] = PLAIN) -> None:
    tokenizer = trained(vocab_size=400)
    tokenizer.post_processor = None
    _save(tokenizer, path, rng, plain)


def _spaced(path: Path, rng: random.Random, plain: tuple[str, ...] = PLAIN) -> None:
    """With byte fallback: U+2581 for spaces, one of them in front."""
    _save(JsonTokenizer.from_str(json.dumps(TOKENIZER)), path, rng, plain)


def _save(tokenizer: JsonTokenizer, path: Path, rng: random.Random, plain: tuple[str, ...] = PLAIN) -> None:
    tokenizer.add_tokens([_drawn(rng, text) for text in plain])
    tokenizer.add_special_tokens([_drawn(rng, text, is_special=True) for text in SPECIAL])
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))


def _ids_or_none(oracle: JsonTokenizer, text: str) -> list[int] | None:
    """None where the package panics: where a token that strips spaces has taken one that is white space itself."""
    try:
        ids: list[int] = oracle.encode(text, add_special_tokens=False).ids
    except BaseException as failure:  # noqa: BLE001 (a panic is no Exception)
        assert "bad split" in str(failure), failure
        return None
    return ids


def _without_control_tokens(path: Path) -> JsonTokenizer:
    content = json.loads((path / "tokenizer.json").read_text())
    content["added_tokens"] = [entry for entry in content["added_tokens"] if not entry["special"]]
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"unused {i}": i for i in range(max(vocabulary.values())) if i not in vocabulary.values()}
    first = min(entry["id"] for entry in content["added_tokens"])
    vocabulary |= {f"unused {i}": i for i in range(max(vocabulary.values()) + 1, first)}
    return JsonTokenizer.from_str(json.dumps(content))


@pytest.mark.parametrize("write", [_byte_level, _spaced])
def test_plain_text_has_the_ids_of_the_package(write: Any, tmp_path: Path, scale: int) -> None:
    rng = random.Random()
    for number in range(20 * scale):
        path = tmp_path / str(number)
        write(path, rng)
        ours, oracle = load_tokenizer(path), _without_control_tokens(path)
        for text in _texts(rng, PLAIN, 50):
            expected = _ids_or_none(oracle, text)
            assert expected in (None, ours.encode(text, add_special_tokens=False)), (
                text,
                oracle.get_added_tokens_decoder(),
            )


@pytest.mark.parametrize("write", [_byte_level, _spaced])
def test_rendered_text_has_the_ids_of_the_package(write: Any, tmp_path: Path, scale: int) -> None:
    rng = random.Random()
    for number in range(20 * scale):
        path = tmp_path / str(number)
        write(path, rng, IN_TEMPLATES)
        ours, oracle = load_tokenizer(path), JsonTokenizer.from_file(str(path / "tokenizer.json"))
        for text in _texts(rng, IN_TEMPLATES + SPECIAL, 50):
            expected = oracle.encode(text, add_special_tokens=False).ids
            assert ours.encode_with_specials(text) == expected, (text, oracle.get_added_tokens_decoder())


@pytest.mark.parametrize("legacy", [True, False])
def test_a_sentencepiece_model_takes_the_flags_of_its_config(legacy: bool, tmp_path: Path, scale: int) -> None:
    rng = random.Random()
    for number in range(3 * scale):
        tokens = [(_drawn(rng, text), False) for text in NEW]
        tokens += [(_drawn(rng, text, is_special=True), True) for text in SPECIAL]
        path = checkpoint(tmp_path / str(number), tokenizer_config=_config(tokens, legacy))
        ours, oracle = load_tokenizer(path), LlamaTokenizer.from_pretrained(path)
        for text in _texts(rng, NEW + SPECIAL, 100):
            expected = oracle.encode(text, add_special_tokens=False)
            assert _parts(ours, ours.encode_with_specials(text)) == _parts(ours, expected), (text, tokens)


def _parts(tokenizer: Tokenizer, ids: list[int]) -> list[int | bytes]:
    """Return ids of added tokens, and the text of what is between them. transformers merges some pieces in another
    order, and puts no space in front of a part that begins with one."""
    parts: list[int | bytes] = []
    for is_added, group in groupby(ids, lambda token_id: token_id >= 32000):
        run = list(group)
        parts += run if is_added else [b"".join(map(tokenizer.token_bytes, run)).lstrip(b" ")]
    return [part for part in parts if part != b""]


def _config(tokens: list[tuple[AddedToken, bool]], legacy: bool) -> dict[str, Any]:
    decoder = {
        str(32000 + i): {"content": token.content, "special": special, **{name: getattr(token, name) for name in FLAGS}}
        for i, (token, special) in enumerate(tokens)
    }
    usual = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return {**usual, "legacy": legacy, "added_tokens_decoder": decoder}


def _edited(path: Path, **changes: Any) -> Path:
    content = json.loads((path / "tokenizer.json").read_text()) | changes
    return write_json_files(path, tokenizer=content)


def test_a_control_token_that_a_text_could_hide_is_refused(tmp_path: Path) -> None:
    _save(trained(vocab_size=300), tmp_path / "a", random.Random())
    added = json.loads((tmp_path / "a" / "tokenizer.json").read_text())["added_tokens"]
    added[-1]["single_word"] = True
    _edited(tmp_path / "a", added_tokens=added)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: the control token '<\|stop\|>' is marked as single_w"):
        load_tokenizer(tmp_path / "a")


def test_a_token_that_is_looked_for_in_text_of_another_normalizer_is_refused(tmp_path: Path) -> None:
    tokenizer = trained(vocab_size=300)
    tokenizer.add_tokens([AddedToken("xl", normalized=True)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("axle", add_special_tokens=False)[1] == tokenizer.token_to_id("xl")
    _edited(tmp_path, normalizer={"type": "NFC"})
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: the added token 'xl' is marked as normalized, but"):
        load_tokenizer(tmp_path)


def test_white_space_that_a_token_strips_is_scanned_once() -> None:
    matcher = AddedMatcher([ConfiguredToken(1, " ", False, strips_right=True), ConfiguredToken(2, "x", False)])
    scans: list[int] = []
    with patch.object(added_tokens, "_end_of_white", side_effect=lambda text, at: scans.append(at) or len(text) - 1):
        assert [token_id for _, token_id in matcher.split(" " * 3000 + "x")] == [*[1] * 3000, 2, None]
    assert scans == [1]


def test_no_flag_makes_a_control_token_of_a_users_text(tmp_path: Path) -> None:
    rng = random.Random()
    _byte_level(tmp_path / "a", rng)
    ours: Tokenizer = load_tokenizer(tmp_path / "a")
    for text in _texts(rng, PLAIN + SPECIAL, 500):
        assert not any(map(ours.is_special, ours.encode(text, add_special_tokens=False)))
