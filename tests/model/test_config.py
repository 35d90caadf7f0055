"""Parameters and KV bytes of published models."""

from dataclasses import replace

from model.config import ModelConfig

CONFIG = ModelConfig(
    architecture="MixtralForCausalLM",
    vocab_size=32000,
    dim=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    hidden_dim=14336,
    num_experts=8,
    experts_per_token=2,
    window=None,
    context_len=32768,
    rope_theta=1e6,
    norm_eps=1e-5,
    tied_head=False,
    dtype="bfloat16",
    bos_token_id=1,
    eos_token_ids=(2,),
)


def test_mixtral_8x7b_counts_as_published() -> None:
    assert CONFIG.num_parameters() == 46_702_792_704
    assert CONFIG.kv_bytes_per_token("bfloat16") == 128 * 1024
    assert 16 * CONFIG.kv_bytes_per_token("float32") == 4 * 1024 * 1024
    assert CONFIG.kv_bytes_per_token("int8") == 2 * 32 * 8 * (128 + 4)


def test_mistral_7b_counts_as_published() -> None:
    dense = replace(CONFIG, architecture="MistralForCausalLM", num_experts=0, experts_per_token=0)
    assert dense.num_parameters() == 7_241_732_096


def test_more_tokens_end_an_answer_if_the_model_can_sample_them() -> None:
    assert CONFIG.with_end_ids([31999, 2, 32000, -1]).eos_token_ids == (2, 31999)


def test_a_tied_head_has_no_parameters_of_its_own() -> None:
    assert CONFIG.num_parameters() - replace(CONFIG, tied_head=True).num_parameters() == 32000 * 4096
