"""Embedding checkpoints: Mistral without a head, and what Sentence Transformers writes beside the weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.checkpoint import read_config, read_stored_weights
from model.checkpoint.errors import CheckpointError
from model.checkpoint.sentence_embedding import embeds
from model.config import MISTRAL, MISTRAL_EMBEDDING
from tests.support.checkpoints.mixtral import Shape, edit_config, save_embedding_checkpoint, save_random_checkpoint

SHAPE = Shape(num_experts=0)
KINDS = ("Transformer", "Pooling", "Normalize")


def write_modules(path: Path, kinds: tuple[str, ...] = KINDS, folder: object = "1_Pooling", **pooling: Any) -> Path:
    modules: list[dict[str, Any]] = [{"idx": i, "path": "", "type": f"models.{kind}"} for i, kind in enumerate(kinds)]
    modules[1]["path"] = folder
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir(exist_ok=True)
    config = {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True} | pooling
    (path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return path


def test_a_mistral_without_a_head_embeds_and_does_not_generate(tmp_path: Path) -> None:
    save_embedding_checkpoint(SHAPE, tmp_path)
    config, warnings = read_config(tmp_path)
    assert (config.architecture, config.embeds, config.generates) == (MISTRAL_EMBEDDING, True, False)
    assert (config.num_experts, config.tied_head, warnings) == (0, True, [])
    weights = read_stored_weights(tmp_path, config)
    assert "model.layers.1.mlp.up_proj.weight" in weights and "lm_head.weight" not in weights


def test_names_with_a_prefix_are_read_too(tmp_path: Path) -> None:
    save_random_checkpoint(SHAPE, tmp_path)  # with a head, as some conversions keep it
    edit_config(tmp_path, architectures=[MISTRAL_EMBEDDING])
    config, _ = read_config(tmp_path)
    assert "lm_head.weight" in read_stored_weights(tmp_path, config)


@pytest.mark.parametrize("kinds", [KINDS, KINDS[:2]])
@pytest.mark.parametrize("architecture", [MISTRAL, MISTRAL_EMBEDDING])
def test_last_token_pooling_is_embedding_by_every_architecture(
    tmp_path: Path, kinds: tuple[str, ...], architecture: str
) -> None:
    warnings: list[str] = []
    assert embeds(write_modules(tmp_path, kinds), architecture, warnings) and not warnings


def test_the_pooling_may_be_spelled_as_one_mode(tmp_path: Path) -> None:
    (write_modules(tmp_path) / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    assert embeds(tmp_path, MISTRAL_EMBEDDING, [])


def test_a_generation_model_without_these_files_does_not_embed(tmp_path: Path) -> None:
    assert not embeds(tmp_path, MISTRAL, [])


BAD: list[tuple[dict[str, Any], str]] = [
    ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}, r"the pooling is \['mean_tokens'\]"),
    ({"pooling_mode_mean_tokens": True}, "only that of the last token"),
    ({"kinds": ("Transformer", "Pooling", "Dense")}, "has the steps"),
    ({"folder": "../1_Pooling"}, "not the name of a folder"),
    ({"folder": None}, "not the name of a folder"),
    ({"folder": "2_Pooling"}, "is missing"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_another_pooling_is_refused_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        embeds(write_modules(tmp_path, **change), MISTRAL_EMBEDDING, [])
    assert "\n" not in str(raised.value)


def test_a_generation_model_with_another_pooling_is_served_without_embeddings(tmp_path: Path) -> None:
    warnings: list[str] = []
    write_modules(tmp_path, pooling_mode_mean_tokens=True, pooling_mode_lasttoken=False)
    assert not embeds(tmp_path, MISTRAL, warnings)
    assert len(warnings) == 1 and warnings[0].endswith("the model is served without embeddings")


@pytest.mark.parametrize("content", ["{}", "[1]", "[", '[{"type": 5}]'])
def test_damaged_modules_are_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"modules\.json") as raised:
        embeds(tmp_path, MISTRAL_EMBEDDING, [])
    assert "\n" not in str(raised.value)
