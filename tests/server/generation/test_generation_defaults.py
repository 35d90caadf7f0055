"""server/generation/generation_defaults.py: the checkpoint's defaults, and the operator's."""

import json
from pathlib import Path

import gguf
import pytest

from engine.capacity.gguf_vocabulary import PACKED_VOCABULARY
from server.generation.generation_defaults import GenerationDefaults, load_generation_defaults
from server.generation.sampling_params import sampling_params
from server.schemas import CompletionRequest, validate
from server.strict_json import JsonValue
from server.tokenizer.tokenizer import TokenizerError

PROMPT: dict[str, JsonValue] = {"model": "m", "prompt": "x"}


def test_the_checkpoints_defaults_apply_to_fields_that_the_request_omits(tmp_path: Path) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"temperature": 0.3, "top_k": 9, "repetition_penalty": 1.2}))
    defaults = load_generation_defaults(tmp_path)
    without, explicit = validate(CompletionRequest, PROMPT), validate(CompletionRequest, {**PROMPT, "temperature": 1})
    numbers = [
        sampling_params(request, max_tokens=1, seed=0, prompt_index=0, choice_index=0, defaults=defaults)
        for request in (without, explicit)
    ]
    assert [(p.temperature, p.top_k, p.repetition_penalty) for p in numbers] == [(0.3, 9, 1.2), (1.0, 9, 1.2)]
    file.write_text('{"temperature": 17}')
    with pytest.raises(TokenizerError, match="temperature"):
        load_generation_defaults(tmp_path)
    file.unlink()
    assert load_generation_defaults(tmp_path) == GenerationDefaults()


def write_gguf(path: Path, **fields: float) -> None:
    """Write a file without tensors, with recommended sampling fields by the package gguf."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in fields.items():
        add = writer.add_int32 if isinstance(value, int) else writer.add_float32
        add(f"general.sampling.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["model.gguf", PACKED_VOCABULARY])
def test_a_gguf_file_has_its_defaults_in_its_fields(tmp_path: Path, name: str) -> None:
    """A pack of such a file has them in a file of fields alone, and is a directory."""
    write_gguf(tmp_path / name, temp=0.7, top_k=40, top_p=0.95, min_p=0.05, penalty_repeat=1.1, mirostat=0)
    path = tmp_path / name if name == "model.gguf" else tmp_path
    assert load_generation_defaults(path) == GenerationDefaults(0.7, 0.95, 40, 0.05, 1.1)


def test_a_gguf_file_without_such_fields_has_no_defaults(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", temp=0.5)
    assert load_generation_defaults(tmp_path / "model.gguf") == GenerationDefaults(temperature=0.5)
    write_gguf(tmp_path / "none.gguf")
    assert load_generation_defaults(tmp_path / "none.gguf") == GenerationDefaults()


@pytest.mark.parametrize(
    ("fields", "fault"),
    [({"temp": 2.5}, "temperature must be a number from 0 to 2"), ({"top_k": 3.5}, "top_k must be an integer")],
)
def test_a_default_that_no_request_could_have_is_named_with_the_file(
    tmp_path: Path, fields: dict[str, float], fault: str
) -> None:
    write_gguf(tmp_path / "model.gguf", **fields)
    with pytest.raises(TokenizerError, match=rf"model\.gguf: {fault}$"):
        load_generation_defaults(tmp_path / "model.gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(TokenizerError, match=r"model\.gguf"):
        load_generation_defaults(tmp_path / "model.gguf")
