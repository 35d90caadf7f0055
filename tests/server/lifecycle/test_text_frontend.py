"""server/lifecycle/text_frontend.py: the template of the flag replaces the checkpoint's."""

import asyncio
import shutil
from pathlib import Path

import pytest

from server.generation.generation_defaults import GenerationDefaults
from server.lifecycle.errors import StartError
from server.lifecycle.text_frontend import load_defaults, load_texts
from server.settings.sources import load_settings
from tests.support.paths import DEMO
from tests.support.servers.inline_sandbox import InlineSandbox


def test_the_template_of_the_flag_replaces_the_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{{ messages[0].content }}!")
    given = asyncio.run(
        load_texts(load_settings({"model": str(DEMO), "chat_template": str(path)}), DEMO, InlineSandbox())
    )
    own = asyncio.run(load_texts(load_settings({"model": str(DEMO)}), DEMO, InlineSandbox()))
    assert given.chat_template.source == "{{ messages[0].content }}!"
    assert own.chat_template.source != given.chat_template.source


def test_a_template_that_is_no_text_is_named_by_its_flag(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_bytes(b"\xff\xfe\x00")
    settings = load_settings({"model": str(DEMO), "chat_template": str(path)})
    with pytest.raises(StartError, match=r"^--chat-template .*cannot be read as text$"):
        asyncio.run(load_texts(settings, DEMO, InlineSandbox()))


@pytest.mark.parametrize(
    ("generation_config", "temperature"), [("auto", 0.25), ("none", GenerationDefaults().temperature)]
)
def test_the_checkpoints_sampling_defaults_can_be_ignored(
    tmp_path: Path, generation_config: str, temperature: float
) -> None:
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(DEMO / name, tmp_path)
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.25}')
    settings = load_settings({"model": str(tmp_path), "generation_config": generation_config})
    assert asyncio.run(load_texts(settings, tmp_path, InlineSandbox())).defaults.temperature == temperature


@pytest.mark.parametrize("generation_config", ["auto", "none"])
def test_the_operators_sampling_defaults_come_first(tmp_path: Path, generation_config: str) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.25, "min_p": 0.125}')
    overrides = '{"temperature": 0.7, "top_k": 40}'
    settings = load_settings({"generation_config": generation_config, "override_generation_config": overrides})
    min_p = 0.125 if generation_config == "auto" else 0.0
    assert load_defaults(settings, tmp_path) == GenerationDefaults(temperature=0.7, top_k=40, min_p=min_p)
