"""A checkpoint in another format than Hugging Face's gives the tokens and logprobs of the same weights in that one."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from smoe import LocalEngine, SamplingParams
from tests.model.checkpoint.test_mistral_layout import save_as_mistral
from tests.support.checkpoints.gguf import GgufShape, Type, iq2_m, q4_k_m, write_gguf
from tests.support.checkpoints.mixtral import Shape, random_model, save_in_layout
from tests.support.checkpoints.quantized import save_quantized

SMALL: dict[str, Any] = {"dtype": "float32", "threads": 1, "num_kv_blocks": 16, "max_num_batched_tokens": 32}
PROMPTS = [[1, 5, 9, 33, 70], [1, 100], list(range(40))]


def answers(path: Path, **settings: Any) -> list[tuple[list[int], list[float]]]:
    """Return the greedy tokens and their logprobs."""
    engine = LocalEngine(path, **(SMALL | settings))
    params = SamplingParams(max_tokens=8, temperature=0, num_logprobs=1, ignore_eos=True)
    return [(c.token_ids, [one.logprob for one in c.logprobs]) for c in engine.generate(PROMPTS, params)]


def prompt_logprobs(path: Path, **settings: Any) -> NDArray[np.float64]:
    """Return the logprob of each token of a prompt, given those before it."""
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=True)
    [completion] = LocalEngine(path, **(SMALL | settings)).generate([PROMPTS[2]], params)
    return np.array([one.logprob for one in completion.prompt_logprobs])


def save_hugging_face(path: Path, shape: GgufShape, weights: dict[str, NDArray[np.float32]]) -> Path:
    """Save the weights in Hugging Face's layout, in float32."""
    path.mkdir()
    config = {
        "architectures": ["MixtralForCausalLM"],
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.dim,
        "intermediate_size": shape.hidden_dim,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "num_local_experts": shape.num_experts,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 512,
        "rope_theta": 1e6,
        "rms_norm_eps": float(np.float32(1e-5)),
        "torch_dtype": "float32",
        "tie_word_embeddings": shape.tied,
    }
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(weight) for name, weight in weights.items()}, path / "model.safetensors")
    return path


DECODED = [{"backend": "reference"}, {"quantization": "int4"}, {"dtype": "bfloat16", "quantization": "int8"}]


@pytest.mark.parametrize("settings", DECODED, ids=str)
def test_decoded_gguf_files_give_the_bits_of_their_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    weights = write_gguf(tmp_path / "a.gguf", GgufShape(num_layers=2))
    expected = answers(save_hugging_face(tmp_path / "hf", GgufShape(num_layers=2), weights), **settings)
    assert answers(tmp_path / "a.gguf", **settings) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_per_expert_and_split_files_give_the_same_bits(dtype: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "merged.gguf", GgufShape(num_layers=2))
    write_gguf(tmp_path / "single.gguf", GgufShape(num_layers=2, merged=False, tensors_per_part=9))
    expected = answers(tmp_path / "merged.gguf", dtype=dtype)
    assert answers(next(tmp_path.glob("single-00001-of-*.gguf")), dtype=dtype) == expected


def uneven(name: str) -> Type:
    """Give the experts of a layer different types, as some files do."""
    types = {"ffn_down.0": Type.Q6_K, "ffn_down.1": Type.Q4_0, "ffn_up": Type.Q3_K, "ffn_gate.": Type.Q5_K}
    return next((kind for mark, kind in types.items() if mark in name), q4_k_m(name))


@pytest.mark.parametrize(("merged", "type_of"), [(True, q4_k_m), (False, uneven), (True, iq2_m), (False, iq2_m)])
@pytest.mark.parametrize("tied", [True, False])
def test_blocks_answer_like_their_decoded_weights(
    merged: bool, type_of: Callable[[str], Type], tied: bool, tmp_path: Path
) -> None:
    """The kernels round the activations of each block to int8, which moves logprobs a little.

    Uneven types, Q3_K among them, and a tied head are read too: in blocks where the backend multiplies them.
    """
    shape = GgufShape(num_layers=2, merged=merged, tied=tied)
    weights = write_gguf(tmp_path / "a.gguf", shape, type_of)
    decoded = prompt_logprobs(save_hugging_face(tmp_path / "hf", shape, weights))
    found = prompt_logprobs(tmp_path / "a.gguf")
    assert 0 < np.abs(found - decoded).max() < 0.1
    for dtype in ("float32", "bfloat16"):
        whole = prompt_logprobs(tmp_path / "a.gguf", dtype=dtype)
        chunks = prompt_logprobs(tmp_path / "a.gguf", dtype=dtype, threads=2, max_num_batched_tokens=7)
        assert np.array_equal(whole, chunks)


@pytest.mark.parametrize("name", ["AWQ", "GPTQ act-order", "compressed-tensors, zeros", "FP8", "nf4, nested", "MLX"])
def test_quantized_checkpoints_give_the_bits_of_their_decoded_weights(name: str, tmp_path: Path) -> None:
    source = save_in_layout(random_model(Shape(dim=64, hidden_dim=64, num_experts=4, vocab_size=104)), tmp_path / "a")
    weights = save_quantized(source, tmp_path / "quantized", name)
    save_torch_file({each: weight.float() for each, weight in weights.items()}, source / "model.safetensors")
    decoded = {"backend": "reference"}  # the native backend multiplies groups as they are
    assert answers(tmp_path / "quantized", **decoded) == answers(source, **decoded)


KEPT = {
    "AWQ": "INT4_G32",
    "GPTQ act-order": "INT4_G32",
    "GPTQ 8-bit": "INT8_G32",
    "compressed-tensors, zeros": "INT4_G32",
    "compressed-tensors, act-order": "INT4_G32",
    "compressed-tensors INT8": "INT8_G64",
    "compressed-tensors INT8, zeros": "INT8_G64",
    "MLX": "AFFINE4_G32",
    "MLX 8-bit": "AFFINE8_G32",
    "MLX 3-bit": "AFFINE4_G32",
    "MLX 6-bit": "AFFINE8_G64",
}


@pytest.mark.parametrize("name", KEPT)
def test_groups_answer_like_their_decoded_weights(name: str, tmp_path: Path) -> None:
    """The kernels round the activations of each group to int8, a relative error of 1.2 % at most in each product.

    The same bits in other chunks and with other threads.
    """
    shape = Shape(dim=64, hidden_dim=64, num_experts=2, vocab_size=104)  # both experts count: no choice can change
    source = save_in_layout(random_model(shape), tmp_path / "a")
    weights = save_quantized(source, tmp_path / "quantized", name)
    save_torch_file({each: weight.float() for each, weight in weights.items()}, source / "model.safetensors")
    found, decoded = prompt_logprobs(tmp_path / "quantized"), prompt_logprobs(source)
    assert 0 < np.linalg.norm(found - decoded) < 0.03 * np.linalg.norm(decoded - decoded.mean())
    again = prompt_logprobs(tmp_path / "quantized", threads=2, max_num_batched_tokens=7)
    assert np.array_equal(found, again)
    assert f"-{KEPT[name]}-" in LocalEngine(tmp_path / "quantized", **SMALL).fingerprint


def test_mistrals_own_layout_gives_the_bits_of_hugging_faces(tmp_path: Path) -> None:
    save_as_mistral(tmp_path, Shape(num_experts=4))
    assert answers(tmp_path) == answers(tmp_path / "source")


def test_the_fingerprint_names_the_formats_of_weights_in_blocks(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", GgufShape())
    kept, decoded, again = (
        LocalEngine(tmp_path / "a.gguf", **(SMALL | settings)).fingerprint
        for settings in ({}, {"backend": "reference"}, {"quantization": "int8"})
    )
    assert "-Q4_K+Q8_0+Q5_K+Q6_K-float32-" in kept
    assert "Q4_K" not in decoded + again and "-int8-" in again


def test_another_theta_gives_other_answers(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", GgufShape())
    usual = LocalEngine(tmp_path / "a.gguf", **SMALL)
    changed = LocalEngine(tmp_path / "a.gguf", rope_theta=100.0, **SMALL)
    assert changed.fingerprint == re.sub("-theta-.*-weights-", "-theta-100-weights-", usual.fingerprint)
    assert answers(tmp_path / "a.gguf", rope_theta=100.0) != answers(tmp_path / "a.gguf")
