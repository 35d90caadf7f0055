"""server/tokenizer/config_files.py: settings from every file that a checkpoint may have, and clear errors."""

import json
from pathlib import Path

import pytest

from server.tokenizer.config_files import AddedToken, TokenizerError, TokenizerSettings, read_json, read_settings
from tests.support.checkpoints.mistral_tokenizers import write_json_files


def read(path: Path, **json_files: object) -> TokenizerSettings:
    return read_settings(write_json_files(path, **json_files))


def test_a_folder_without_files_gives_the_defaults(tmp_path: Path) -> None:
    settings = read_settings(tmp_path)
    assert (settings.added_tokens, settings.bos_token, settings.eos_ids) == ((), None, ())
    assert settings.adds_bos is None and settings.is_legacy


def test_end_tokens_are_merged_from_all_files(tmp_path: Path) -> None:
    settings = read(tmp_path, config={"eos_token_id": 2}, generation_config={"eos_token_id": [2, 7, True, -1, "9"]})
    assert settings.eos_ids == (2, 7)


def test_the_chat_template_is_found_in_each_of_its_places(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert read(tmp_path, tokenizer_config={"chat_template": "S"}).chat_template == "S"
    assert read(tmp_path, tokenizer_config={"chat_template": named}).chat_template == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert read_settings(tmp_path).chat_template == "J"


def test_a_named_token_is_a_text_or_an_object_and_the_special_map_fills_gaps(tmp_path: Path) -> None:
    config = {"bos_token": {"content": "<b>"}, "additional_special_tokens": ["<x>", {"content": "<y>"}, 5]}
    settings = read(tmp_path, tokenizer_config=config, special_tokens_map={"bos_token": "<no>", "eos_token": "<e>"})
    assert (settings.bos_token, settings.eos_token, settings.unk_token) == ("<b>", "<e>", None)
    assert settings.special_tokens == {"<b>", "<e>", "<x>", "<y>"}


def test_the_newer_list_of_added_tokens_takes_precedence_by_id(tmp_path: Path) -> None:
    newer = {"8": {"content": "new", "special": True}}
    settings = read(tmp_path, added_tokens={"old": 8, "kept": 9}, tokenizer_config={"added_tokens_decoder": newer})
    assert settings.added_tokens == (AddedToken(9, "kept", False), AddedToken(8, "new", True))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"\xff"),
        ("tokenizer_config.json", b"version https://git-lfs.github.com/spec/v1\n"),
        ("tokenizer_config.json", b"<html>not found</html>"),
        ("tokenizer_config.json", json.dumps({"added_tokens_decoder": 5}).encode()),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": 1}}'),
        ("added_tokens.json", b'{"a": -1}'),
        ("added_tokens.json", b'{"a": "b"}'),
        ("generation_config.json", b"nonsense"),
        ("chat_template.jinja", b"\xff"),
    ],
)
def test_a_damaged_file_gives_one_line_that_names_it(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        read_settings(tmp_path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("error", "words"), [(RecursionError(), "nested too deeply"), (MemoryError(), "not enough memory to read it")]
)
def test_a_file_that_exceeds_the_interpreters_limits_is_reported_in_words(
    error: Exception, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(text: str) -> None:
        raise error

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(json, "loads", fail)
    with pytest.raises(TokenizerError, match=words):
        read_json(tmp_path / "config.json")
