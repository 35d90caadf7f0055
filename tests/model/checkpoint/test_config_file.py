"""Values that load_config reads, and values that it refuses in one line that names the file and the key."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint.config_file import load_config
from model.checkpoint.errors import CheckpointError

CLASSIC: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": None,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DENSE = {"architectures": ["MistralForCausalLM"], "num_local_experts": ..., "num_experts_per_tok": ...}


def _write(path: Path, **changes: Any) -> Path:
    config = CLASSIC | changes
    (path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return path


def test_both_spellings_give_the_same_config(tmp_path: Path) -> None:
    classic, _ = load_config(_write(tmp_path))
    rope = {"rope_theta": 10000.0, "rope_type": "default"}
    modern, _ = load_config(
        _write(tmp_path, rope_theta=..., rope_parameters=rope, torch_dtype=..., dtype="bfloat16", head_dim=8)
    )
    assert classic == modern
    assert (classic.rope_theta, classic.dtype, classic.head_dim, classic.window) == (1e4, "bfloat16", 8, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint32])
@pytest.mark.parametrize("prefix", ["model.", ""])
def test_without_a_dtype_the_model_has_that_of_its_embedding(tmp_path: Path, dtype: torch.dtype, prefix: str) -> None:
    """One that is stored as words (quantized) says nothing: bfloat16, as without weights."""
    save_file({f"{prefix}embed_tokens.weight": torch.zeros(2, 2, dtype=dtype)}, tmp_path / "model.safetensors")
    config, warnings = load_config(_write(tmp_path, torch_dtype=...))
    assert config.dtype == ("bfloat16" if dtype == torch.uint32 else str(dtype).removeprefix("torch."))
    [warning] = warnings
    assert warning.startswith(f"config.json has no dtype: using {config.dtype}; the embedding is stored as ")
    (tmp_path / "model.safetensors").unlink()
    config, warnings = load_config(tmp_path)
    assert (config.dtype, warnings) == ("bfloat16", ["config.json has no dtype: using bfloat16"])


def test_a_mistral_has_no_experts(tmp_path: Path) -> None:
    config, _ = load_config(_write(tmp_path, **DENSE, sliding_window=4096))
    assert (config.num_experts, config.experts_per_token, config.window) == (0, 0, 4096)


@pytest.mark.parametrize("change", [{"is_causal": False}, {"use_bidirectional_attention": True}])
def test_bidirectional_attention_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """Embedding models that were trained to see the whole text give other vectors with causal attention."""
    with pytest.raises(CheckpointError, match="bidirectional"):
        load_config(_write(tmp_path, **DENSE, **change))


def test_a_mixtral_with_the_window_of_old_conversions_keeps_it_and_warns(tmp_path: Path) -> None:
    config, warnings = load_config(_write(tmp_path, sliding_window=4096))
    assert config.window == 4096
    assert len(warnings) == 1 and "--sliding-window none" in warnings[0]
    config, warnings = load_config(_write(tmp_path, sliding_window=16))
    assert (config.window, warnings) == (16, [])


@pytest.mark.parametrize(("choice", "window"), [("none", None), (7, 7)])
def test_a_chosen_window_overrides_the_stored_one(tmp_path: Path, choice: Any, window: int | None) -> None:
    config, warnings = load_config(_write(tmp_path, sliding_window=16), choice)
    assert (config.window, warnings) == (window, [])


def test_a_window_of_zero_cannot_be_chosen(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="window of 0"):
        load_config(_write(tmp_path), 0)


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [(2, None, (2,)), ([2, 5], None, (2, 5)), (2, 7, (7, 2)), (None, [3, 2], (3, 2)), (None, None, ())],
)
def test_end_tokens_come_from_both_files(tmp_path: Path, in_config: Any, in_generation: Any, expected: Any) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": in_generation}))
    assert load_config(_write(tmp_path, eos_token_id=in_config))[0].eos_token_ids == expected


WRONG_VALUES: list[tuple[str, dict[str, Any]]] = [
    *(("architectures", {"architectures": v}) for v in (["LlamaForCausalLM"], [], None, "MixtralForCausalLM", [7])),
    *(("vocab_size", {"vocab_size": v}) for v in (0, -1, 10**12, "97", True, 97.0, None, ..., [97])),
    *(("hidden_size", {"hidden_size": v}) for v in (0, 33, 10**12, False, "x" * 10_000)),
    *(("num_hidden_layers", {"num_hidden_layers": v}) for v in (0, -3, 10**12)),
    *(("num_attention_heads", {"num_attention_heads": v}) for v in (0, 3, "4", 10**12)),
    *(("num_key_value_heads", {"num_key_value_heads": v}) for v in (0, 3, 8, ..., True)),
    *(("head", {"head_dim": v}) for v in (0, 7, -8, "8", 10**12)),
    *(("num_local_experts", {"num_local_experts": v}) for v in (0, -1, 10**12, ...)),
    *(("num_experts_per_tok", {"num_experts_per_tok": v}) for v in (0, 9, -1, "2", ...)),
    *(("intermediate_size", {"intermediate_size": v}) for v in (0, 10**12, None)),
    *(("max_position_embeddings", {"max_position_embeddings": v}) for v in (0, ..., 1e3)),
    *(("sliding_window", {"sliding_window": v}) for v in (0, -1, "16", True)),
    *(("rope_theta", {"rope_theta": v}) for v in (..., None, 0, -1.0, "1e4", True, [])),
    *(("rms_norm_eps", {"rms_norm_eps": v}) for v in (0, -1e-5, "x", ..., 2.0)),
    *(("rope type is 'longrope'", {"rope_scaling": {key: "longrope", "factor": 2}}) for key in ("type", "rope_type")),
    ("rope type is None", {"rope_scaling": {"rope_type": None}}),
    ("rope_theta", {"rope_parameters": {"rope_theta": 5.0}}),  # differs from the one outside
    ("rope_theta", {"rope_theta": ..., "rope_parameters": {"rope_type": "default"}}),
    ("rope_parameters", {"rope_parameters": [1]}),
    ("partial_rotary_factor", {"rope_parameters": {"partial_rotary_factor": 0.5}}),
    *(("dtype", {"torch_dtype": v}) for v in ("int8", "float", 16, ["bfloat16"])),
    ("hidden_act", {"hidden_act": "gelu"}),
    ("attention_bias", {"attention_bias": True}),
    ("tie_word_embeddings", {"tie_word_embeddings": "yes"}),
    ("quantization_config", {"quantization_config": {"quant_method": "awq"}}),
    ("layer_types", {"layer_types": ["full_attention", "sliding_attention"]}),
    *(("eos_token_id", {"eos_token_id": v}) for v in (97, -1, "2", [2, None], True)),
    *(("bos_token_id", {"bos_token_id": v}) for v in (97, -1, "1", [1, 2])),
]


@pytest.mark.parametrize(("named", "changes"), WRONG_VALUES, ids=lambda value: ascii(value)[:50])
def test_a_wrong_value_is_refused_by_name_in_one_line(tmp_path: Path, named: str, changes: dict[str, Any]) -> None:
    _assert_refused(_write(tmp_path, **changes), f"config.json.*{named}")


def test_a_config_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("hello")
    _assert_refused(tmp_path, "config.json is not valid JSON")


def test_a_huge_config_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 30)
    _assert_refused(tmp_path, "config.json has 1073741824 bytes")


def test_a_damaged_generation_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 97}')
    _assert_refused(_write(tmp_path), "generation_config.json.*eos_token_id")


def test_what_is_not_a_checkpoint_directory_is_refused(tmp_path: Path) -> None:
    _assert_refused(tmp_path, "config.json is missing")
    _assert_refused(tmp_path / "nowhere", "nowhere does not exist")
    (tmp_path / "file").touch()
    _assert_refused(tmp_path / "file", "file is not a directory")


def _assert_refused(path: Path, pattern: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_config(path)
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert "\n" not in message and len(message) < 500
