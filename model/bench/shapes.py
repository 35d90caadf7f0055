"""Shapes of networks to benchmark without a checkpoint. Imports no torch."""

from model.config import MIXTRAL, ModelConfig


def _mixtral(
    dim: int, num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int, hidden_dim: int
) -> ModelConfig:
    return ModelConfig(
        architecture=MIXTRAL,
        vocab_size=32000,
        dim=dim,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        hidden_dim=hidden_dim,
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


PRESETS = {
    "mixtral-8x7b": _mixtral(4096, 32, 32, 8, 128, 14336),
    "bench-400m": _mixtral(1024, 8, 16, 4, 64, 1792),
    "tiny": _mixtral(64, 2, 4, 2, 16, 96),  # runs in seconds; only for tests: its figures are meaningless
}
