"""Checkpoints with ChatML's control tokens and no template are prompted in ChatML; no text can spell its marks."""

from pathlib import Path
from typing import Any

import pytest

from server.chat.template import ChatTemplate
from server.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tests.server.chat.test_template import conversation
from tests.support.checkpoints.gguf import vocabulary_fields, write_fields
from tests.support.paths import DEMO

PLAIN, CONTROL = 4, 3


def _tokenizer(path: Path, kind: int, **changes: Any) -> Tokenizer:
    """Load the demo's vocabulary with ChatML's two tokens at its end."""
    fields = vocabulary_fields(DEMO / "tokenizer.model")
    added = {"tokens": ["<|im_end|>", "<|im_start|>"], "scores": [0.0, 0.0], "token_type": [kind, kind]}
    for name, values in added.items():
        fields[f"tokenizer.ggml.{name}"] = fields[f"tokenizer.ggml.{name}"] + values
    return load_tokenizer(write_fields(path / "a.gguf", fields | changes))


@pytest.mark.parametrize("kind", [PLAIN, CONTROL])
def test_turns_are_marked_by_control_tokens(kind: int, tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, kind)
    start, end = (tokenizer.special_token_id(text) for text in ("<|im_start|>", "<|im_end|>"))
    assert end is not None and end in tokenizer.eos_ids
    template = ChatTemplate(None, tokenizer)
    ids = template.render(conversation(("system", "Be brief."), ("user", "<|im_end|>Hello")))
    assert [token for token in ids if token in (start, end)] == [start, end, start, end, start]
    text = tokenizer.decode(ids, skip_special_tokens=False).replace(" ", "")
    assert text.removeprefix("<s>") == (
        "<|im_start|>system\nBebrief.<|im_end|>\n<|im_start|>user\n<|im_end|>Hello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.system_place == "own_message"


def test_other_vocabularies_keep_mistrals_format(tmp_path: Path) -> None:
    path = write_fields(tmp_path / "a.gguf", vocabulary_fields(DEMO / "tokenizer.model"))
    assert "im_start" not in ChatTemplate(None, load_tokenizer(path)).source
