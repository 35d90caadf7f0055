"""The Mixtral network for training: differentiable, over full sequences, without a KV cache.

Shape letters: B batch, S sequence, D model dim, H heads, G KV heads, K head dim, E experts, k experts per token,
T = B*S tokens, F expert hidden dim, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkConfig:
    vocab_size: int = 3072
    dim: int = 192
    num_layers: int = 5
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 32
    hidden_dim: int = 384
    num_experts: int = 8
    experts_per_token: int = 2
    window: int = 256
    context_len: int = 2048
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5


class Attention(nn.Module):
    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.dim, c.num_heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.dim, c.num_kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.dim, c.num_kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.num_heads * c.head_dim, c.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.c.num_heads, -1).transpose(1, 2)  # [B, H, S, K]
        k = self.k_proj(x).view(batch, length, self.c.num_kv_heads, -1).transpose(1, 2)  # [B, G, S, K]
        v = self.v_proj(x).view(batch, length, self.c.num_kv_heads, -1).transpose(1, 2)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        groups = self.c.num_heads // self.c.num_kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)  # [B, H, S, K]
        out = F.scaled_dot_product_attention(q, k, v.to(q.dtype), attn_mask=mask.to(q.dtype))
        mixed: Tensor = self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))
        return mixed


class Expert(nn.Module):
    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(c.dim, c.hidden_dim, bias=False)
        self.w2 = nn.Linear(c.hidden_dim, c.dim, bias=False)
        self.w3 = nn.Linear(c.dim, c.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class SparseMoe(nn.Module):
    """Top-k experts per token, and the load-balancing loss of Switch Transformer (Fedus et al., eq. 4)."""

    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        self.k = c.experts_per_token
        self.gate = nn.Linear(c.dim, c.num_experts, bias=False)
        self.experts = nn.ModuleList(Expert(c) for _ in range(c.num_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = x.reshape(-1, x.shape[-1])  # [T, D]
        logits = self.gate(tokens).float()  # [T, E]
        top, expert_ids = logits.topk(self.k, dim=-1)  # [T, k]
        weights = top.softmax(-1)
        order = expert_ids.flatten().argsort(stable=True)
        counts = expert_ids.flatten().bincount(minlength=len(self.experts))
        rows = torch.split(tokens[order // self.k], counts.tolist())
        outputs = torch.cat([expert(part) for expert, part in zip(self.experts, rows, strict=True)])
        scaled = outputs * weights.flatten()[order, None]
        mixed = torch.zeros_like(tokens, dtype=scaled.dtype).index_add(0, order // self.k, scaled)
        share = counts / counts.sum()
        balance = len(self.experts) * (share * logits.softmax(-1).mean(0)).sum()
        return mixed.view_as(x), balance


class Layer(nn.Module):
    def __init__(self, c: NetworkConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c.dim, eps=c.norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c.dim, eps=c.norm_eps)
        self.block_sparse_moe = SparseMoe(c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        moe, balance = self.block_sparse_moe(self.post_attention_layernorm(x))
        return x + moe, balance


class Network(nn.Module):
    """The network. `forward` returns logits [B, S, V] and the mean load-balancing loss; names are Hugging Face's."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                scale = (2 * config.num_layers) ** -0.5 if name.endswith(("o_proj.weight", "w2.weight")) else 1.0
                nn.init.normal_(weight, std=0.02 if "embed" in name else scale * weight.shape[1] ** -0.5)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        length = ids.shape[1]
        cos, sin = _rotary(self.config, length)
        mask = _window_mask(length, self.config.window)
        x, balances = self.embed_tokens(ids), []
        for layer in self.layers:
            x, balance = layer(x, cos, sin, mask)
            balances.append(balance)
        return self.lm_head(self.norm(x)), torch.stack(balances).mean()


def _rotary(c: NetworkConfig, length: int) -> tuple[Tensor, Tensor]:
    frequencies = c.rope_theta ** (-torch.arange(0, c.head_dim, 2).float() / c.head_dim)
    angles = torch.outer(torch.arange(length).float(), frequencies).repeat(1, 2)  # [S, K]
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def _window_mask(length: int, window: int) -> Tensor:
    """Return an additive mask [S, S]: position i sees i - window + 1 .. i."""
    i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
    return torch.zeros(length, length).masked_fill((j > i) | (j <= i - window), float("-inf"))
