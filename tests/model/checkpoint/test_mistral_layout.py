"""Checkpoints in Mistral's own layout give the weights of the same model in Hugging Face's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint.checkpoint import read_config, read_stored_weights
from model.checkpoint.errors import CheckpointError
from model.config import MISTRAL, MIXTRAL
from model.stored_weights import read_weight
from tests.support.checkpoints.mixtral import Shape, random_model, save_in_layout, write_index

SHAPE = Shape(num_layers=2, num_experts=4)
DENSE = Shape(num_layers=1, num_experts=0)
TOP = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
PLACES = {
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
    "block_sparse_moe.gate": "feed_forward.gate", "block_sparse_moe.experts": "feed_forward.experts",
    "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
}  # fmt: skip


def save_as_mistral(path: Path, shape: Shape, **changes: Any) -> dict[str, Tensor]:
    """Write a random model as mistral-inference expects it; return its weights in Hugging Face's names and order."""
    source = save_in_layout(random_model(shape), path / "source")
    weights = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    params = {
        "dim": shape.dim, "n_layers": shape.num_layers, "n_heads": shape.num_heads, "n_kv_heads": shape.num_kv_heads,
        "head_dim": shape.dim // shape.num_heads, "hidden_dim": shape.hidden_dim, "vocab_size": shape.vocab_size,
        "norm_eps": config["rms_norm_eps"], "rope_theta": shape.theta, "max_seq_len": 1024,
    }  # fmt: skip
    if shape.num_experts:
        params["moe"] = {"num_experts": shape.num_experts, "num_experts_per_tok": 2}
    merged = {name: value for name, value in (params | changes).items() if value is not ...}
    (path / "params.json").write_text(json.dumps(merged))
    save_file({own_name(name): own_order(name, weight) for name, weight in weights.items()}, path / FILE)
    return weights


FILE = "consolidated.safetensors"


def own_name(name: str) -> str:
    for theirs, ours in (TOP | {f".{a}.": f".{b}." for a, b in PLACES.items()}).items():
        name = name.replace(theirs, ours) if theirs in name else name
    return name.removeprefix("model.")


def own_order(name: str, weight: Tensor) -> Tensor:
    """Put rows i and i + K/2 of each head of q and k side by side, one row after another."""
    if "q_proj" not in name and "k_proj" not in name:
        return weight
    head_dim = SHAPE.dim // SHAPE.num_heads
    half = head_dim // 2
    rows = [head * head_dim + i // 2 + i % 2 * half for head in range(len(weight) // head_dim) for i in range(head_dim)]
    return weight[rows].contiguous()


def _read(path: Path) -> dict[str, Tensor]:
    stored = read_stored_weights(path, read_config(path)[0])
    return {name: read_weight(weight, torch.float32) for name, weight in stored.items()}


@pytest.mark.parametrize("shape", [SHAPE, DENSE], ids=["mixtral", "mistral"])
def test_weights_and_config_equal_those_of_hugging_faces_layout(shape: Shape, tmp_path: Path) -> None:
    expected = save_as_mistral(tmp_path, shape)
    found = _read(tmp_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    config, warnings = read_config(tmp_path)
    theirs, _ = read_config(tmp_path / "source")
    assert config.architecture == (MIXTRAL if shape.num_experts else MISTRAL) and warnings == []
    for name in ("dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_dim", "num_experts", "dtype"):
        assert getattr(config, name) == getattr(theirs, name)
    assert (config.rope_theta, config.norm_eps, config.context_len) == (theirs.rope_theta, theirs.norm_eps, 1024)


def test_several_files_are_found_by_their_index(tmp_path: Path) -> None:
    expected = save_as_mistral(tmp_path, SHAPE)
    tensors = load_file(tmp_path / FILE)
    (tmp_path / FILE).unlink()
    names = sorted(tensors)
    files = {name: f"consolidated-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, tmp_path / file)
    write_index(tmp_path, files)
    (tmp_path / "model.safetensors.index.json").rename(tmp_path / f"{FILE}.index.json")
    assert all(torch.equal(_read(tmp_path)[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize(("window", "theta"), [(None, 1e6), (4096, 1e4)])
def test_theta_and_context_have_mistrals_defaults(window: int | None, theta: float, tmp_path: Path) -> None:
    save_as_mistral(tmp_path, SHAPE, rope_theta=..., max_seq_len=..., sliding_window=window)
    config, [warning] = read_config(tmp_path)
    assert (config.rope_theta, config.window, config.context_len) == (theta, window, 32768)
    assert "no context length" in warning
    assert read_config(tmp_path, "none", rope_theta=5.0)[0].rope_theta == 5.0


def test_a_config_json_goes_first(tmp_path: Path) -> None:
    save_as_mistral(tmp_path, SHAPE)
    (tmp_path / "config.json").write_text((tmp_path / "source" / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        _read(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "changes"),
    [
        ("dim is missing", {"dim": ...}),
        ("n_heads 4 is not a multiple of n_kv_heads 3", {"n_kv_heads": 3}),
        ("head_dim 7 is odd", {"head_dim": 7}),
        ("moe.num_experts_per_tok is 9", {"moe": {"num_experts": 4, "num_experts_per_tok": 9}}),
        ("lora is set", {"lora": {"enable": True}}),
        ("yarn is set", {"yarn": {"factor": 16, "original_max_position_embeddings": 8192}}),
        ("llama_4_scaling is set", {"llama_4_scaling": {"beta": 0.1}}),
        (r"tensor layers\.2\.attention_norm\.weight is missing", {"n_layers": 3}),
        (r"'layers\.1\.attention\.wk\.weight' does not belong", {"n_layers": 1}),
        ("has shape", {"hidden_dim": 64}),
    ],
)
def test_a_wrong_value_is_refused_by_name(pattern: str, changes: dict[str, Any], tmp_path: Path) -> None:
    save_as_mistral(tmp_path, SHAPE, **changes)
    with pytest.raises(CheckpointError, match=pattern) as caught:
        _read(tmp_path)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_named(tmp_path: Path) -> None:
    save_as_mistral(tmp_path, SHAPE)
    (tmp_path / FILE).rename(tmp_path / "consolidated.00.pt")
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pt.* holds pickled weights, which are never loaded"):
        read_config(tmp_path)
