"""Invalid configurations, those of other networks, and flags that do not fit a configuration."""

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.bad_checkpoints.start import CONFIG, refusal, rewrite, start
from tests.support.checkpoints.mixtral import edit_config

NOT_CONFIGS: dict[str, bytes | None] = {
    "missing": None,
    "empty": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "NaN": b'{"rope_theta": NaN}',
    "beyond a double": b'{"rope_theta": 1e999}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "huge": b'{"a": "' + b"x" * (2 << 20) + b'"}',
    "deep": b'{"a":' + b"[" * 100_000,
    "a key twice": b'{"hidden_size": 1, "hidden_size": 2}',
}


@pytest.mark.parametrize("name", NOT_CONFIGS)
def test_an_invalid_config_file_is_named(name: str, checkpoint: Path) -> None:
    content = NOT_CONFIGS[name]
    (checkpoint / CONFIG).unlink()
    if content is not None:
        (checkpoint / CONFIG).write_bytes(content)
    assert CONFIG in refusal(checkpoint)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        *[({"architectures": value}, "architectures") for value in (["LlamaForCausalLM"], [], None, ["Zebra"] * 2)],
        *[({"hidden_size": value}, "hidden_size") for value in (0, -1, 10**12, "32", 32.0, None, True, ...)],
        *[({"num_attention_heads": value}, "num_attention_heads") for value in (0, 3, 10**12)],
        *[({"num_key_value_heads": value}, "num_key_value_heads") for value in (3, 0, 5, "2")],
        *[({"num_local_experts": value}, "num_local_experts") for value in (0, -1, 10**12, None)],
        *[({"num_experts_per_tok": value}, "num_experts_per_tok") for value in (0, 5, "2")],
        *[({"vocab_size": value}, "vocab_size") for value in (0, -5, 10**12, "3072")],
        *[({"num_hidden_layers": value}, "num_hidden_layers") for value in (0, 10**9, 1.5)],
        *[({"rope_theta": value}, "rope_theta") for value in (0, -1, "1e6", ...)],
        *[({"rms_norm_eps": value}, "rms_norm_eps") for value in (0, -1e-5, 2, "x")],
        *[({"torch_dtype": value}, "dtype") for value in ("float8_e4m3fn", "int8", 5)],
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"eos_token_id": 3072}, "eos_token_id"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": 1 << 20, "num_attention_heads": 4096}, "shape"),
    ],
    ids=str,
)
def test_a_config_of_another_network_is_refused_by_its_key(change: dict[str, Any], part: str, checkpoint: Path) -> None:
    edit_config(checkpoint, **change)
    assert part in refusal(checkpoint)


def test_code_in_a_checkpoint_is_never_run(checkpoint: Path) -> None:
    edit_config(checkpoint, auto_map={"AutoModelForCausalLM": "modeling.Zebra"}, trust_remote_code=True)
    (checkpoint / "modeling.py").write_text("raise SystemExit('this was run')")
    start(checkpoint)


def test_tied_weights_start_with_and_without_a_head(checkpoint: Path) -> None:
    edit_config(checkpoint, tie_word_embeddings=True)
    start(checkpoint)
    rewrite(checkpoint, lambda tensors: tensors.pop("lm_head.weight"))
    start(checkpoint)
    edit_config(checkpoint, tie_word_embeddings=False)
    assert "lm_head.weight is missing" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"max_model_len": 10_000}, "model's context of 1024; --max-model-len 128 fits"),  # what 8 blocks hold
        (
            {"max_model_len": 1000},
            "--max-model-len 1",
        ),  # more tokens than 8 blocks hold: the message names the number that fits
        ({"num_kv_blocks": None, "kv_cache_memory_bytes": 1000}, "--kv-cache-memory-bytes of 1000 B is too small"),
        ({"num_kv_blocks": None, "kv_cache_memory_bytes": "900GiB"}, "GiB are free"),
        ({"experts_per_token": 5}, "the model has 4 experts"),
        ({"quantization": "fp8"}, "fp8"),
        ({"chat_template": "/no/where"}, "--chat-template"),
    ],
    ids=str,
)
def test_a_flag_that_cannot_work_names_a_value_that_would(flags: dict[str, Any], part: str, good: Path) -> None:
    assert part in refusal(good, **flags)
