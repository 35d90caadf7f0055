"""A checkpoint in another format than Hugging Face's gives the tokens and logprobs of the same weights in that one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from smoe import LocalEngine, SamplingParams
from tests.support.gguf_files import GgufShape, write_gguf

SMALL: dict[str, Any] = {"dtype": "float32", "threads": 1, "num_kv_blocks": 16, "max_num_batched_tokens": 32}
PROMPTS = [[1, 5, 9, 33, 70], [1, 100], list(range(40))]


def answers(path: Path, **settings: Any) -> list[tuple[list[int], list[float]]]:
    """Return the greedy tokens and their logprobs."""
    engine = LocalEngine(path, **(SMALL | settings))
    params = SamplingParams(max_tokens=8, temperature=0, num_logprobs=1, ignore_eos=True)
    return [(c.token_ids, [one.logprob for one in c.logprobs]) for c in engine.generate(PROMPTS, params)]


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
    }
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(weight) for name, weight in weights.items()}, path / "model.safetensors")
    return path


@pytest.mark.parametrize(
    "settings", [{}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantization": "int4"}], ids=str
)
def test_gguf_files_give_the_bits_of_their_decoded_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    merged, single = GgufShape(num_layers=2), GgufShape(num_layers=2, merged=False, tensors_per_part=9)
    weights = write_gguf(tmp_path / "merged.gguf", merged)
    write_gguf(tmp_path / "single.gguf", single)
    expected = answers(save_hugging_face(tmp_path / "hf", merged, weights), **settings)
    assert answers(tmp_path / "merged.gguf", **settings) == expected
    assert answers(next(tmp_path.glob("single-00001-of-*.gguf")), **settings) == expected


def test_another_theta_gives_other_answers(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", GgufShape())
    usual = LocalEngine(tmp_path / "a.gguf", **SMALL)
    changed = LocalEngine(tmp_path / "a.gguf", rope_theta=100.0, **SMALL)
    assert changed.fingerprint == usual.fingerprint.replace("-weights-", "-theta-100-weights-")
    assert answers(tmp_path / "a.gguf", rope_theta=100.0) != answers(tmp_path / "a.gguf")
