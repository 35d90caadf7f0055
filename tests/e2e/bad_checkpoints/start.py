"""Start checkpoints in this process, with the functions that `smoe serve` calls."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.engine import Engine
from engine.errors import EngineConfigError
from model.checkpoint.errors import CheckpointError
from server.lifecycle.errors import StartError
from server.lifecycle.text_frontend import load_texts
from server.settings.engine_config import engine_config
from server.settings.sources import SettingsError, load_settings
from server.tokenizer.config_files import TokenizerError
from tests.support.servers.inline_sandbox import InlineSandbox

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
TOKENIZER, TOKENIZER_CONFIG, GENERATION = "tokenizer.model", "tokenizer_config.json", "generation_config.json"
W1 = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
GATE = "model.layers.1.block_sparse_moe.gate.weight"
SMALL = {"dtype": "float32", "threads": 1, "num_kv_blocks": 8, "max_num_batched_tokens": 32, "block_size": 16}


def start(path: Path, **flags: Any) -> None:
    """Run the steps of `smoe serve` before readiness, without sockets."""
    given = {name: value for name, value in (SMALL | flags).items() if value is not None}
    settings = load_settings({"model": str(path), **given})
    texts = asyncio.run(load_texts(settings, path, InlineSandbox()))
    engine = Engine.load(engine_config(settings, path), lambda *progress: None)
    texts.tokenizer.check_fits(engine.loaded.config.vocab_size)


def refusal(path: Path, **flags: Any) -> str:
    """Start an invalid checkpoint; return the line that the start ends with."""
    kinds = (SettingsError, StartError, TokenizerError, CheckpointError, EngineConfigError)
    with pytest.raises(kinds) as caught:
        start(path, **flags)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600
    return line


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path / WEIGHTS)
    change(tensors)
    save_file(tensors, path / WEIGHTS)
