"""Faults that --verify finds: files that differ from the checkpoint's list, and weights that are not finite."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from engine.engine import Engine
from model.checkpoint.errors import CheckpointError
from server.cli.plan.memory import add_manifest
from server.settings.engine_config import engine_config
from server.settings.sources import load_settings
from server.tokenizer.config_files import TokenizerError
from tests.e2e.bad_checkpoints.start import (
    CONFIG,
    GATE,
    GENERATION,
    SMALL,
    TOKENIZER,
    W1,
    WEIGHTS,
    refusal,
    rewrite,
    start,
)
from tests.support.checkpoints.mixtral import Shape, random_model, save_in_layout


def test_with_checksums_one_flipped_bit_names_its_file(checkpoint: Path) -> None:
    settings = load_settings({"model": str(checkpoint)})
    assert "--write-manifest" in refusal(checkpoint, verify=True)
    assert add_manifest(settings).endswith("SHA-256 sums of 5 files")
    start(checkpoint, verify=True)
    for name in (WEIGHTS, TOKENIZER, CONFIG, GENERATION):
        content = (checkpoint / name).read_bytes()
        damaged = bytearray(content)
        position = len(damaged) - 2 if name == WEIGHTS else damaged.find(b"e")
        damaged[position] ^= 1 if name == WEIGHTS else 0x20
        (checkpoint / name).write_bytes(damaged)
        settings = load_settings({"model": str(checkpoint), **SMALL, "verify": True})
        with pytest.raises((CheckpointError, TokenizerError), match=re.escape(name)):
            Engine.load(engine_config(settings, checkpoint), lambda *progress: None)
        (checkpoint / name).write_bytes(content)
    start(checkpoint, verify=True)


def test_the_manifest_has_the_format_of_sha256sum(checkpoint: Path) -> None:
    add_manifest(load_settings({"model": str(checkpoint)}))
    checked = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=checkpoint, capture_output=True, text=True, check=True
    )
    assert checked.stdout.count(": OK\n") == 5


def test_files_beside_the_list_or_missing_from_the_folder_are_named(checkpoint: Path) -> None:
    add_manifest(load_settings({"model": str(checkpoint)}))
    (checkpoint / "chat_template.jinja").write_text("x")
    assert "chat_template.jinja is not listed" in refusal(checkpoint, verify=True)
    (checkpoint / "chat_template.jinja").unlink()
    (checkpoint / GENERATION).unlink()
    assert "'generation_config.json' is missing, though" in refusal(checkpoint, verify=True)
    for content in ("", "Zebra\n", "0" * 64 + "\n"):
        (checkpoint / "SHA256SUMS").write_text(content)
        assert "is not a list of SHA-256 sums" in refusal(checkpoint, verify=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [W1, GATE, "model.norm.weight", "model.embed_tokens.weight"])
def test_a_weight_that_is_not_finite_is_found_by_verification(name: str, value: float, checkpoint: Path) -> None:
    rewrite(checkpoint, lambda tensors: tensors[name].flatten()[-1].fill_(value))
    add_manifest(load_settings({"model": str(checkpoint)}))
    assert refusal(checkpoint, verify=True).endswith(f"tensor {name} contains NaN or Inf")


@pytest.mark.parametrize("fused", [False, True])
def test_an_expert_of_zeros_is_found_by_verification(fused: bool, tmp_path: Path, good: Path) -> None:
    model = random_model(Shape(num_experts=4, vocab_size=3072))
    path = save_in_layout(model, tmp_path, fused=fused)
    shutil.copy(good / TOKENIZER, path)
    add_manifest(load_settings({"model": str(path)}))
    start(path, verify=True)
    name = "model.layers.0.mlp.experts.down_proj" if fused else W1
    rewrite(path, lambda tensors: (tensors[name][1] if fused else tensors[name]).zero_())
    add_manifest(load_settings({"model": str(path)}))
    assert refusal(path, verify=True).endswith(f"tensor {name} has an expert whose weights are all zero")
