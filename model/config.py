"""The shape of a network: what config.json says, as plain data. Imports no torch."""

from dataclasses import dataclass

from model.kv_format import KvDtype, row_bytes

MIXTRAL, MISTRAL = "MixtralForCausalLM", "MistralForCausalLM"


@dataclass(frozen=True)
class ModelConfig:
    """The network's shape. D = dim, H = num_heads, G = num_kv_heads, K = head_dim, F = hidden_dim, E = num_experts."""

    architecture: str  # MixtralForCausalLM or MistralForCausalLM
    vocab_size: int
    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_dim: int  # of the FFN, or of one expert
    num_experts: int  # 0: one dense FFN
    experts_per_token: int  # 0 for a dense FFN
    window: int | None  # position i sees i - window + 1 .. i; None: all before it
    context_len: int  # positions the network was made for
    rope_theta: float
    norm_eps: float
    tied_head: bool  # the output head is the embedding unless the checkpoint stores one of its own
    dtype: str  # of the checkpoint: float32, bfloat16 or float16
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    def kv_bytes_per_token(self, kv_dtype: KvDtype) -> int:
        """K and V of one position over all layers. Mixtral-8x7B in bf16: 2 * 32 * 8 * 128 * 2 = 131,072."""
        return 2 * self.num_layers * self.num_kv_heads * row_bytes(kv_dtype, self.head_dim)

    def num_parameters(self) -> int:
        """All weights, each counted once. Mixtral-8x7B: 46,702,792,704."""
        attention = 2 * self.dim * (self.num_heads + self.num_kv_heads) * self.head_dim
        gate = self.dim * self.num_experts
        experts = 3 * self.dim * self.hidden_dim * max(self.num_experts, 1)
        layer = attention + gate + experts + 2 * self.dim
        return self.vocab_size * self.dim * (1 if self.tied_head else 2) + self.num_layers * layer + self.dim
