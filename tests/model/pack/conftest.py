"""Packs whose experts are read when they are needed."""

import pytest
import torch

from tests.support.kernels.stored_experts import CONFIG, WIDE, Pack, new_pack


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return new_pack(tmp_path_factory.mktemp("packs") / "p", CONFIG, torch.bfloat16)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return new_pack(tmp_path_factory.mktemp("packs") / "wide", WIDE, torch.float32)
