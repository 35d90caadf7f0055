"""Groups of AWQ, GPTQ, compressed-tensors and MLX are read into blocks with exactly the weights of their formats."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint.checkpoint import read_config, read_stored_weights
from model.checkpoint.errors import CheckpointError
from model.checkpoint.headers import read_headers
from model.checkpoint.stored_tensor import PackedEncoding, PackedMatrix
from model.checkpoint.weight_sizes import PACKED_BLOCKS, kept_in_blocks, weight_bytes
from model.loader import LoadOptions, load_model
from model.ops.interface import packed_bytes
from model.packed_groups import read_group_matrix
from tests.support.checkpoints.block_matrices import decoded
from tests.support.checkpoints.mixtral import Shape, edit_config, edit_tensors, random_model, save_in_layout
from tests.support.checkpoints.quantized import FORMATS, gptq, save_quantized
from tests.support.kernels.native_cases import ISAS, native
from tests.support.kernels.paged import CPU

SHAPE = Shape(dim=64, hidden_dim=64, num_experts=4, vocab_size=96)
DECODED = ("FP8", "FP8, inverse scale", "FP8 in blocks", "nf4", "nf4, nested")
DECODED += ("compressed-tensors FP8", "compressed-tensors FP8 in blocks")
KEPT = [name for name in FORMATS if name not in DECODED]

Quantized = Callable[
    [str], tuple[Path, dict[str, torch.Tensor]]
]  # a format -> its checkpoint, and what its weights are


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_in_layout(random_model(SHAPE), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def quantized(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    @cache
    def saved(name: str) -> tuple[Path, dict[str, torch.Tensor]]:
        path = tmp_path_factory.mktemp("quantized") / "q"
        return path, save_quantized(plain, path, name)

    return saved


@pytest.mark.parametrize("name", FORMATS)
def test_groups_have_the_weights_of_their_format(name: str, quantized: Quantized) -> None:
    """Others (FP8, nf4) are decoded."""
    path, weights = quantized(name)
    config, _ = read_config(path)
    stored = read_stored_weights(path, config)
    kept = kept_in_blocks(stored, PACKED_BLOCKS)
    assert bool(kept) == (name in KEPT)
    for each in kept:
        matrix = stored[each]
        assert isinstance(matrix, PackedMatrix)
        for threads in (1, 3):
            blocks = read_group_matrix(matrix, matrix.dtype, threads)
            assert torch.equal(decoded(blocks), weights[each].float())


@pytest.mark.parametrize("name", KEPT)
def test_loaded_groups_take_the_bytes_that_headers_promise(name: str, quantized: Quantized) -> None:
    path, _ = quantized(name)
    ops, (config, _) = native(ISAS[-1]), read_config(path)
    stored = read_stored_weights(path, config)
    loaded = load_model(path, config, ops, LoadOptions(torch.float32, CPU))
    assert packed_bytes(loaded.weights) == sum(weight_bytes(stored, 4, "none", ops.block_formats).values())


def test_groups_out_of_order_need_no_desc_act(plain: Path, tmp_path: Path) -> None:
    weights = save_quantized(plain, tmp_path / "q", "GPTQ act-order")
    edit_config(tmp_path / "q", quantization_config=FORMATS["GPTQ"].config)
    name = "model.layers.1.self_attn.o_proj.weight"
    matrix = read_stored_weights(tmp_path / "q", read_config(tmp_path / "q")[0])[name]
    assert isinstance(matrix, PackedMatrix)
    assert torch.equal(decoded(read_group_matrix(matrix, matrix.dtype, 1)), weights[name])


def test_groups_of_unequal_sizes_are_refused_in_one_line_and_decoded_with_quantization(
    plain: Path, tmp_path: Path
) -> None:
    save_quantized(plain, tmp_path / "q", "GPTQ act-order")
    edit_tensors(
        tmp_path / "q",
        lambda tensors: tensors.update({name: part // 2 for name, part in tensors.items() if name.endswith("g_idx")}),
    )
    config, _ = read_config(tmp_path / "q")
    with pytest.raises(CheckpointError, match=r"g_idx has groups of unequal sizes; --quantization int8 reads it$"):
        load_model(tmp_path / "q", config, native(ISAS[-1]), LoadOptions(torch.float32, CPU))
    ops = native(ISAS[-1], quantization="int8")
    load_model(tmp_path / "q", config, ops, LoadOptions(torch.float32, CPU))


def test_a_group_of_256_becomes_two_with_the_same_scale(tmp_path: Path) -> None:
    parts, weights = gptq(4, group=256)(np.random.default_rng(0), 40, 512)
    save_file({f"x.{name}": part for name, part in parts.items()}, tmp_path / "model.safetensors")
    stored = {name.removeprefix("x."): tensor for name, tensor in read_headers(tmp_path).items()}
    matrix = PackedMatrix("x", (40, 512), PackedEncoding("gptq", 4, 256, zero_offset=1), stored)
    assert matrix.dtype == "INT4_G128"
    assert torch.equal(decoded(read_group_matrix(matrix, matrix.dtype, 1)), weights)
