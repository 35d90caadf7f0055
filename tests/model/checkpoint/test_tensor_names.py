"""Tensors that do not fit the config raise a CheckpointError of one line that names the tensor; parts are counted."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint.config_file import load_config
from model.checkpoint.errors import CheckpointError
from model.checkpoint.headers import read_headers
from model.checkpoint.tensor_names import checked_tensors, expected_shapes, parameters_by_part, part_of
from tests.support.checkpoints.mixtral import Shape, edit_tensors, random_model, save_in_layout

Q_PROJ, HEAD = "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"
W1 = "model.layers.0.block_sparse_moe.experts.3.w1.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_in_layout(random_model(Shape(num_experts=4)), tmp_path)


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop(W1), f"tensor {W1} is missing$"),
    "several missing": (lambda t: (t.pop(W1), t.pop(HEAD)), r"is missing \(and 1 more\)"),
    "unexpected": (lambda t: t.update({"model.layers.2.x": torch.zeros(2)}), r"model\.layers\.2\.x'? does not belong"),
    "bias": (lambda t: t.update({Q_PROJ[:-6] + "bias": torch.zeros(32)}), "q_proj.bias'? does not belong"),
    "transposed": (lambda t: t.update({W1: t[W1].T.contiguous()}), rf"{W1} has shape \[32, 48\].*requires \[48, 32\]"),
    "short": (lambda t: t.update({HEAD: t[HEAD][:-1]}), rf"{HEAD} has shape \[100, 32\].*\[101, 32\]"),
    "flat": (lambda t: t.update({Q_PROJ: t[Q_PROJ].flatten()}), rf"{Q_PROJ} has shape \[1024\].*\[32, 32\]"),
    "integers": (lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.int8)}), f"{Q_PROJ} has dtype I8"),
    "doubles": (lambda t: t.update({Q_PROJ: t[Q_PROJ].double()}), f"{Q_PROJ} has dtype F64"),
    "fp8": (lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.float8_e4m3fn)}), f"{Q_PROJ} has dtype F8_E4M3"),
    "ugly name": (lambda t: t.update({"a\nb" * 99: torch.zeros(1)}), "does not belong"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_tensors_that_do_not_fit_the_config_are_refused(name: str, checkpoint: Path) -> None:
    change, pattern = CHANGES[name]
    edit_tensors(checkpoint, change)
    with pytest.raises(CheckpointError) as caught:
        checked_tensors(checkpoint, load_config(checkpoint)[0])
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert "\n" not in message and len(message) < 600


def test_stored_rotary_angles_of_old_conversions_are_ignored(checkpoint: Path) -> None:
    config, _ = load_config(checkpoint)
    names = set(checked_tensors(checkpoint, config))
    edit_tensors(checkpoint, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}))
    assert set(checked_tensors(checkpoint, config)) == names


def test_a_head_may_be_absent_only_if_it_is_tied(tmp_path: Path) -> None:
    path = save_in_layout(random_model(Shape(num_experts=2, tied=True)), tmp_path)
    assert HEAD not in checked_tensors(path, load_config(path)[0])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("num_experts", [0, 3])
def test_expected_shapes_are_those_that_transformers_stores(num_experts: int, fused: bool, tmp_path: Path) -> None:
    path = save_in_layout(random_model(Shape(num_experts=num_experts)), tmp_path, fused=fused and num_experts > 0)
    stored = {name: tensor.shape for name, tensor in read_headers(path).items()}
    assert expected_shapes(load_config(path)[0], fused=fused and num_experts > 0) == stored


@pytest.mark.parametrize("num_experts", [0, 3])
def test_parameters_by_part_add_up_to_those_of_the_config(num_experts: int, tmp_path: Path) -> None:
    path = save_in_layout(random_model(Shape(num_experts=num_experts)), tmp_path)
    config, _ = load_config(path)
    counts = parameters_by_part(read_headers(path).values())
    assert sum(counts.values()) == config.num_parameters()
    assert counts["head"] == counts["embedding"] == 101 * 32
    assert (counts["experts"] > 0, counts["ffn"] > 0) == (num_experts > 0, num_experts == 0)


def test_each_tensor_belongs_to_the_part_that_its_name_says() -> None:
    layer = "model.layers.7."
    parts = {
        "model.embed_tokens.weight": "embedding",
        layer + "self_attn.o_proj.weight": "attention",
        layer + "post_attention_layernorm.weight": "norms",
        layer + "block_sparse_moe.gate.weight": "gate",
        layer + "block_sparse_moe.experts.3.w2.weight": "experts",
        layer + "mlp.experts.gate_up_proj": "experts",
        layer + "mlp.gate.weight": "gate",
        layer + "mlp.gate_proj.weight": "ffn",
        "model.norm.weight": "norms",
        "lm_head.weight": "head",
    }
    assert {name: part_of(name) for name in parts} == parts
