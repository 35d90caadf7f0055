"""server/lifecycle/text_checks.py: every fault of the text files, each at its own part."""

import json
import shutil
from pathlib import Path

import pytest

from server.lifecycle.text_checks import check_texts
from server.settings.sources import load_settings
from tests.support.paths import DEMO

VOCAB_SIZE = 3072
TEXT_FILES = ("tokenizer.model", "tokenizer_config.json", "generation_config.json")


def faults(folder: Path, vocab_size: int = VOCAB_SIZE, **flags: object) -> dict[str, str]:
    """Return the details of the parts that fail, by name."""
    checks = check_texts(load_settings({"model": str(folder), **flags}), folder, vocab_size)
    return {check.name: check.detail for check in checks if not check.is_ok}


NO_TOOLS = "; it has no tools: clients that send some (coding agents) need --tool-emulation"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A copy of the bundled model's text files, to be damaged."""
    for name in TEXT_FILES:
        shutil.copy(DEMO / name, tmp_path)
    return tmp_path


def test_good_files_pass_and_the_lines_say_what_was_found(texts: Path) -> None:
    (texts / "generation_config.json").write_text('{"temperature": 0.25, "top_p": 0.5}')
    checks = check_texts(load_settings({"model": str(texts)}), texts, VOCAB_SIZE)
    assert [(check.name, check.detail, check.is_ok) for check in checks] == [
        ("tokenizer", "3,072 tokens", True),
        ("template", f"its own chat template{NO_TOOLS}", True),
        ("defaults", "temperature 0.25, top_p 0.5", True),
    ]


def test_the_flag_for_tools_is_named_until_it_is_given(texts: Path) -> None:
    (texts / "mine.jinja").write_text("{{ messages[0].content }}")
    for flags, detail in (
        ({"tool_emulation": True}, "its own chat template"),
        ({"chat_template": str(texts / "mine.jinja")}, f"--chat-template {texts / 'mine.jinja'}{NO_TOOLS}"),
    ):
        _, template, _ = check_texts(load_settings({"model": str(texts), **flags}), texts, VOCAB_SIZE)
        assert template.detail == detail


def test_a_vocabulary_that_is_smaller_than_the_tokenizer_fails(texts: Path) -> None:
    line = f"{texts}: the tokenizer has 3072 tokens, the model's vocabulary 3000"
    assert faults(texts, vocab_size=3000) == {"tokenizer": line}
    (texts / "added_tokens.json").write_text('{"<x>": 3072}')
    line = f"{texts}: the tokenizer adds token id 3072, the model's vocabulary has only 3072"
    assert faults(texts) == {"tokenizer": line}


def test_each_of_several_faults_is_named(texts: Path) -> None:
    (texts / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{% if %}"}))
    (texts / "generation_config.json").write_text('{"temperature": 3}')
    assert faults(texts, vocab_size=3000).keys() == {"tokenizer", "template", "defaults"}
    assert faults(texts) == {
        "template": "the chat template is not valid jinja (line 1)",
        "defaults": f"{texts / 'generation_config.json'}: temperature must be a number from 0 to 2",
    }
    (texts / "tokenizer.model").unlink()
    assert faults(texts).keys() == {"tokenizer", "defaults"}


def test_settings_that_replace_a_faulty_file_help(texts: Path) -> None:
    (texts / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{% if %}"}))
    (texts / "generation_config.json").write_text('{"temperature": 3}')
    (texts / "mine.jinja").write_text("{{ messages[0].content }}")
    assert faults(texts, chat_template=str(texts / "mine.jinja"), generation_config="none") == {}
    (texts / "mine.jinja").write_bytes(b"\xff\xfe\x00")
    assert faults(texts, chat_template=str(texts / "mine.jinja"), generation_config="none").keys() == {"template"}
