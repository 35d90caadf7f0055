"""Fields of GGUF files give the network's config; missing and unsupported ones are refused by name."""

from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.checkpoint import read_config
from model.checkpoint.errors import CheckpointError
from model.config import MISTRAL, MISTRAL_EMBEDDING, MIXTRAL, ModelConfig
from tests.support.checkpoints.gguf import GgufShape, all_of, write_gguf

SMALL: dict[str, Any] = {"dim": 64, "num_heads": 4, "num_kv_heads": 2, "hidden_dim": 96}
V01 = {"llama.rope.freq_base": None, "llama.context_length": 32768}


def _write(path: Path, type_name: str = "F32", num_experts: int = 4, tied: bool = False, **fields: Any) -> Path:
    named = {f"llama.{name}" if "." not in name else name: value for name, value in fields.items()}
    write_gguf(path / "a.gguf", GgufShape(**SMALL, num_experts=num_experts, tied=tied, fields=named), all_of(type_name))
    return path / "a.gguf"


def test_all_fields_are_read(tmp_path: Path) -> None:
    tokens = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 9}
    assert read_config(_write(tmp_path, **tokens)) == (
        ModelConfig(
            architecture=MIXTRAL,
            vocab_size=101,
            dim=64,
            num_layers=1,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            hidden_dim=96,
            num_experts=4,
            experts_per_token=2,
            window=None,
            context_len=512,
            rope_theta=1e6,
            norm_eps=pytest.approx(1e-5),
            tied_head=False,
            dtype="float32",
            bos_token_id=1,
            eos_token_ids=(2, 9),
        ),
        [],
    )


def test_a_dense_and_tied_network_is_read(tmp_path: Path) -> None:
    config, _ = read_config(_write(tmp_path, "Q8_0", num_experts=0, tied=True, vocab_size=None))
    assert (config.architecture, config.num_experts, config.tied_head) == (MISTRAL, 0, True)
    assert (config.vocab_size, config.dtype) == (101, "bfloat16")


def test_last_token_pooling_makes_an_embedding_model(tmp_path: Path) -> None:
    config, _ = read_config(_write(tmp_path, num_experts=0, tied=True, pooling_type=3))
    assert (config.architecture, config.embeds, config.generates) == (MISTRAL_EMBEDDING, True, False)
    assert not read_config(_write(tmp_path, pooling_type=0))[0].embeds


def test_another_pooling_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pooling_type is 1; only 3"):
        read_config(_write(tmp_path, num_experts=0, pooling_type=1))


def test_choices_of_the_operator_go_first(tmp_path: Path) -> None:
    path = _write(tmp_path, **{"llama.attention.sliding_window": 128})
    assert read_config(path)[0].window == 128
    config, _ = read_config(path, 64, 3, 5e5)
    assert (config.window, config.experts_per_token, config.rope_theta) == (64, 3, 5e5)
    assert read_config(path, "none")[0].window is None
    for choices, pattern in {(0,): "sliding window of 0", ("none", 5): "5 experts per token"}.items():
        with pytest.raises(CheckpointError, match=pattern):
            read_config(path, *choices)


def test_a_mixtral_without_theta_is_refused_until_it_is_given(tmp_path: Path) -> None:
    path = _write(tmp_path, **{"llama.rope.freq_base": None})
    with pytest.raises(CheckpointError, match="set --rope-theta 1000000"):
        read_config(path)
    assert read_config(path, rope_theta=1e6)[0].rope_theta == 1e6


def test_the_context_is_limited_where_the_window_is_unknown(tmp_path: Path) -> None:
    """Mistral-7B v0.1 has a window of 4096, which GGUF files do not store."""
    path = _write(tmp_path, num_experts=0, **V01)
    config, [warning] = read_config(path)
    assert (config.context_len, config.rope_theta) == (4096, 1e4)
    assert "--sliding-window 4096" in warning
    config, warnings = read_config(path, 4096)
    assert (config.context_len, config.window, warnings) == (32768, 4096, [])


def test_a_later_mistral_keeps_its_context(tmp_path: Path) -> None:
    config, warnings = read_config(_write(tmp_path, num_experts=0, context_length=32768))
    assert (config.context_len, config.window, warnings) == (32768, None, [])


DEFECTS: dict[str, dict[str, Any]] = {
    "block_count is missing": {"block_count": None},
    "block_count is 0": {"block_count": 0},
    "embedding_length is 'x'": {"embedding_length": "x"},
    "expert_used_count is 5": {"expert_used_count": 5},
    "expert_used_count is missing": {"expert_used_count": None},
    "head_count is 0": {"llama.attention.head_count": 0},
    "head_count 4 is not a multiple of head_count_kv 3": {"llama.attention.head_count_kv": 3},
    "not a multiple of attention.head_count": {"embedding_length": 66},
    "epsilon is missing": {"llama.attention.layer_norm_rms_epsilon": None},
    "freq_base is -1": {"llama.rope.freq_base": -1.0},
    "freq_base is nan": {"llama.rope.freq_base": float("nan")},
    "rope.dimension_count is 8": {"llama.rope.dimension_count": 8},
    "attention.value_length is 8": {"llama.attention.value_length": 8},
    "rope.scaling.type is 'longrope'; supported are 'none', 'linear' and 'yarn'": {
        "llama.rope.scaling.type": "longrope"
    },
    "rope.scaling.factor is -2.0": {"llama.rope.scaling.factor": -2.0},
    "rope.scale_linear is nan": {"llama.rope.scale_linear": float("nan")},
    "rope.scaling.attn_factor is -1.0": {"llama.rope.scaling.attn_factor": -1.0},
    "makes the attention factor 0.0005": {"llama.rope.scaling.attn_factor": 0.0005},
    "attention.causal is false": {"llama.attention.causal": False},
    "shared experts": {"expert_shared_count": 1},
    "general.type is 'adapter'": {"general.type": "adapter"},
    "eos_token_id is 101": {"tokenizer.ggml.eos_token_id": 101},
    "context_length is True": {"context_length": True},
}


@pytest.mark.parametrize("pattern", DEFECTS)
def test_a_wrong_field_is_refused_by_name(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=pattern) as caught:
        read_config(_write(tmp_path, **DEFECTS[pattern]))
    assert "\n" not in str(caught.value)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0qwen2", 1))
    with pytest.raises(CheckpointError, match=r"general\.architecture is 'qwen2'"):
        read_config(path)
