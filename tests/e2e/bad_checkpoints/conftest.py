"""Fixtures: a valid checkpoint, and a copy of it that a test may damage."""

import shutil
from pathlib import Path

import pytest

from tests.e2e.bad_checkpoints.start import GENERATION, TOKENIZER, TOKENIZER_CONFIG
from tests.support.checkpoints.mixtral import Shape, random_model, save_in_layout
from tests.support.paths import DEMO


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small valid checkpoint: random weights, and the tokenizer files of the demo model."""
    path = save_in_layout(random_model(Shape(num_experts=4, vocab_size=3072)), tmp_path_factory.mktemp("good"))
    for name in (TOKENIZER, TOKENIZER_CONFIG, GENERATION):
        shutil.copy(DEMO / name, path)
    return path


@pytest.fixture
def checkpoint(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "checkpoint"))
