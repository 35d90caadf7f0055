"""A GGUF file served in its own blocks: logits near those of its decoded weights, and the same bits in both layouts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint.checkpoint import read_config, read_stored_weights
from model.checkpoint.errors import CheckpointError
from model.checkpoint.weight_sizes import weight_bytes
from model.kv_pool import KvPool
from model.loader import LoadOptions, load_model
from model.mixtral import Mixtral
from model.mixtral_native import NativeMixtral
from model.ops.interface import Ops, packed_bytes
from model.ops.reference.ops import ReferenceOps
from tests.model.checkpoint.test_mutated_headers import PIECES
from tests.support.checkpoints.block_matrices import with_sums_in
from tests.support.checkpoints.gguf import GgufShape, all_of, iq2_m, q4_k_m, write_gguf
from tests.support.kernels.native_cases import ISAS, native
from tests.support.kernels.paged import CPU, Running, make_batch

# All experts count, so that no rounding changes a choice among them.
SHAPE = GgufShape(num_layers=2, hidden_dim=512, fields={"llama.expert_used_count": 4})
TOKENS = [7 * i % SHAPE.vocab_size for i in range(24)]
TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
TYPES += ["IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS"]
MIXES = {"Q4_K_M": q4_k_m, "IQ2_M": iq2_m}
# Rows of activations are rounded to int8 in every product: 0.5 to 0.8 % each, over 2 layers and the head.
INT8_ERROR = 0.03


def _load(path: Path, ops: Ops, dtype: torch.dtype = torch.float32, **options: Any) -> Mixtral:
    config, _ = read_config(path)
    return load_model(path, config, ops, LoadOptions(dtype, CPU, **options))


def _logits(model: Mixtral) -> Tensor:
    pool = KvPool(model.config, 8, 16, "float32" if model.weights.embedding.dtype == torch.float32 else "bfloat16", CPU)
    return model.forward(make_batch([(Running(TOKENS, [1, 2]), len(TOKENS))], 16), pool)


def _error(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


@pytest.mark.parametrize("type_of", [*map(all_of, TYPES), *MIXES.values()], ids=[*TYPES, *MIXES])
def test_logits_differ_from_those_of_decoded_weights_by_the_rounding_of_activations(
    type_of: Callable[[str], Any], tmp_path: Path
) -> None:
    write_gguf(tmp_path / "a.gguf", SHAPE, type_of)
    exact = _logits(_load(tmp_path / "a.gguf", ReferenceOps()))
    for isa in (ISAS[0], ISAS[-1]):  # products have the same bits on all
        assert _error(_logits(_load(tmp_path / "a.gguf", native(isa))), exact) < INT8_ERROR, isa


def test_quantizing_the_weights_again_would_lose_more(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", SHAPE)
    exact, kept, again = (
        _logits(_load(tmp_path / "a.gguf", ops))
        for ops in (ReferenceOps(), native(ISAS[-1]), native(ISAS[-1], quantization="int4"))
    )
    assert 3 * _error(kept, exact) < _error(again, exact)


def test_sums_between_layers_in_float32_come_nearer_to_the_decoded_weights_than_in_bfloat16(tmp_path: Path) -> None:
    wide = narrow = 0.0
    for seed in range(3):
        write_gguf(tmp_path / "a.gguf", replace(SHAPE, num_layers=8, seed=seed), all_of("Q8_0"))
        exact = _logits(_load(tmp_path / "a.gguf", ReferenceOps()))
        model = _load(tmp_path / "a.gguf", native(ISAS[-1]), torch.bfloat16)
        wide += _error(_logits(model), exact)
        narrow += _error(_logits(Mixtral(model.config, with_sums_in(torch.bfloat16, model.weights), model.ops)), exact)
    assert wide < 0.95 * narrow


def test_the_embedding_is_float16_beside_weights_in_blocks(tmp_path: Path) -> None:
    weights = write_gguf(tmp_path / "a.gguf", SHAPE)["model.embed_tokens.weight"]
    for ops, dtype, kept in (
        (native(ISAS[-1]), torch.bfloat16, torch.float16),
        (native(ISAS[-1]), torch.float32, torch.float32),
        (ReferenceOps(), torch.bfloat16, torch.bfloat16),
    ):
        embedding = _load(tmp_path / "a.gguf", ops, dtype).weights.embedding
        assert embedding.dtype == kept and torch.equal(embedding, torch.from_numpy(weights).to(kept))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_merged_and_single_experts_give_the_same_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    write_gguf(tmp_path / "merged.gguf", SHAPE)
    write_gguf(tmp_path / "single.gguf", replace(SHAPE, merged=False))
    models = [_load(tmp_path / name, native(ISAS[-1]), dtype) for name in ("merged.gguf", "single.gguf")]
    merged, single = map(_logits, models)
    assert torch.equal(merged, single)
    assert torch.equal(merged, _logits(NativeMixtral(models[0], native(ISAS[-1]))))


@pytest.mark.parametrize("shape", [SHAPE, GgufShape(tied=True), GgufShape(num_experts=0, vocab_size=64)], ids=repr)
def test_loaded_weights_take_the_bytes_that_headers_promise(shape: GgufShape, tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", shape)
    ops, (config, _) = native(ISAS[-1]), read_config(tmp_path / "a.gguf")
    stored = read_stored_weights(tmp_path / "a.gguf", config)
    planned = sum(weight_bytes(stored, 2, "none", ops.block_formats).values())
    weights = _load(tmp_path / "a.gguf", ops, torch.bfloat16).weights
    gates = config.num_layers * config.num_experts * config.dim * 2  # in float32, planned in bfloat16
    head_padding = -config.vocab_size % 32 * (148 if shape.tied else 210)  # Q4_K or Q6_K: rows of the last panel
    assert packed_bytes(weights) == planned + gates + head_padding


def test_a_tied_head_is_read_in_blocks(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", GgufShape(tied=True))
    exact = _logits(_load(tmp_path / "a.gguf", ReferenceOps()))
    progress: list[tuple[int, int]] = []
    config, _ = read_config(tmp_path / "a.gguf")
    options = LoadOptions(torch.float32, CPU, lambda *step: progress.append(step))
    model = load_model(tmp_path / "a.gguf", config, native(ISAS[-1]), options)
    assert _error(_logits(model), exact) < INT8_ERROR
    assert progress[-1][0] == progress[-1][1] == max(done for done, _ in progress)


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_blocks_with_nan_or_infinity_are_refused_when_verified(scale: float, tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", SHAPE, all_of("Q8_0"))
    config, _ = read_config(tmp_path / "a.gguf")
    tensor = read_stored_weights(tmp_path / "a.gguf", config)["model.layers.1.self_attn.o_proj.weight"]
    with (tmp_path / "a.gguf").open("r+b") as file:
        file.seek(tensor.start + 34 * 5)
        file.write(np.float16(scale).tobytes())
    with pytest.raises(CheckpointError, match=r"o_proj.weight contains NaN or Inf"):
        _load(tmp_path / "a.gguf", native(ISAS[-1]), check_values=True)


SCALED = GgufShape(dim=64, num_layers=2, num_heads=2, num_kv_heads=1, hidden_dim=96, vocab_size=len(PIECES))
PROMPT = [259 + 7 * i % 5 if i % 3 else 3 + 11 * i % 256 for i in range(200)]
# Fields, and what llama-server of llama.cpp (commit of build 11434, CPU, caches in float32) gave for the token behind
# the first so many tokens of PROMPT: log probabilities by token id, the three largest.
OF_LLAMA_CPP: list[tuple[dict[str, Any], dict[int, dict[int, float]]]] = [
    (
        {"type": "yarn", "factor": 8.0, "original_context_length": 64, "attn_factor": 1.5},
        {
            40: {75: -4.09243, 243: -4.21263, 138: -4.34984},
            120: {75: -4.24555, 41: -4.32648, 203: -4.44006},
            200: {75: -4.19424, 41: -4.40152, 203: -4.46027},
        },
    ),
    (
        {"type": "linear", "factor": 4.0, "attn_factor": 0.8},
        {
            40: {75: -3.77958, 140: -4.51495, 71: -4.6014},
            120: {75: -4.10285, 41: -4.10889, 65: -4.36998},
            200: {75: -4.05829, 41: -4.14892, 65: -4.49705},
        },
    ),
]


@pytest.mark.parametrize(("fields", "expected"), OF_LLAMA_CPP, ids=["YaRN", "linear"])
def test_scaled_angles_give_the_log_probabilities_of_llama_cpp(
    fields: dict[str, Any], expected: dict[int, dict[int, float]], tmp_path: Path
) -> None:
    named = {f"llama.rope.scaling.{name}": value for name, value in fields.items()}
    named |= {"llama.expert_used_count": 4, "llama.rope.freq_base": 1e4}
    write_gguf(tmp_path / "a.gguf", replace(SCALED, fields=named), all_of("F32"))
    model = _load(tmp_path / "a.gguf", native(ISAS[-1]))
    for length, logprobs in expected.items():
        pool = KvPool(model.config, 15, 16, "float32", CPU)
        batch = make_batch([(Running(PROMPT[:length], list(range(1, 15))), length)], 16)
        ours = model.forward(batch, pool)[-1].log_softmax(-1)
        assert ours.topk(3).indices.tolist() == list(logprobs)
        assert [float(ours[i]) for i in logprobs] == pytest.approx(list(logprobs.values()), abs=5e-5)
