"""Shape of a network, as in config.json, as plain data. Imports no torch."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from model.kv_format import KvDtype, row_bytes

MIXTRAL, MISTRAL = "MixtralForCausalLM", "MistralForCausalLM"
MISTRAL_EMBEDDING = "MistralModel"  # Mistral without an output head, as embedding models are stored


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a network. D = dim, H = num_heads, G = num_kv_heads, K = head_dim, F = hidden_dim, E = num_experts."""

    architecture: str  # MixtralForCausalLM, MistralForCausalLM or MistralModel
    vocab_size: int
    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_dim: int  # of the FFN, or of one expert
    num_experts: int  # 0: one dense FFN per layer
    experts_per_token: int  # 0 for a dense FFN
    window: int | None  # position i sees i - window + 1 .. i; None: all of 0 .. i
    context_len: int  # largest number of positions that the network was trained for
    rope_theta: float
    norm_eps: float
    tied_head: bool  # the output head is the embedding, unless the checkpoint stores a head
    dtype: str  # dtype of the checkpoint: float32, bfloat16 or float16
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    embeds: bool = False  # trained to embed a text as the hidden state of its last token
    rope_divisors: tuple[float, ...] = ()  # [K/2], of each rotary pair's frequency; (): angles are not scaled
    rope_factor: float = 1.0  # of cos and sin of all rotary angles, in queries and keys

    @property
    def generates(self) -> bool:
        """False for a checkpoint without an output head. Its embedding stands in for the head, so that it loads."""
        return self.architecture != MISTRAL_EMBEDDING

    def with_end_ids(self, ids: Iterable[int]) -> "ModelConfig":
        """Return the same shape with more tokens that end an answer; ids outside the vocabulary are ignored."""
        known = [token_id for token_id in ids if 0 <= token_id < self.vocab_size]
        return replace(self, eos_token_ids=tuple(dict.fromkeys([*self.eos_token_ids, *known])))

    def kv_bytes_per_token(self, kv_dtype: KvDtype) -> int:
        """Return the bytes of K and V per position, all layers. Mixtral-8x7B, bf16: 2 * 32 * 8 * 128 * 2 = 131,072."""
        return 2 * self.num_layers * self.num_kv_heads * row_bytes(kv_dtype, self.head_dim)

    def num_parameters(self) -> int:
        """Return the number of weights; tied ones count once. Mixtral-8x7B: 46,702,792,704."""
        attention = 2 * self.dim * (self.num_heads + self.num_kv_heads) * self.head_dim
        gate = self.dim * self.num_experts
        experts = 3 * self.dim * self.hidden_dim * max(self.num_experts, 1)
        layer = attention + gate + experts + 2 * self.dim
        return self.vocab_size * self.dim * (1 if self.tied_head else 2) + self.num_layers * layer + self.dim
