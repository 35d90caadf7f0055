"""Networks with random weights, created on the device: for benchmarks and tests that need only a shape."""

from collections.abc import Iterator

import torch
from torch import Tensor

from model.config import ModelConfig
from model.mixtral import LayerWeights, Mixtral, MixtralWeights
from model.ops.interface import FfnWeights, Ops


def random_model(config: ModelConfig, dtype: torch.dtype, device: torch.device, ops: Ops, seed: int) -> Mixtral:
    """Return a network whose weights are drawn from `seed`, as `dtype` on `device`, packed by `ops`.

    Each matrix is packed before the next one is drawn, so that at the peak only one expert is in memory twice. Weights
    have standard deviation inputs^-0.5, which keeps the size of activations about constant.
    """
    source = _Source(dtype, device, torch.Generator(device).manual_seed(seed))
    embedding = source.matrix(config.vocab_size, config.dim)
    layers = [_layer(config, ops, source) for _ in range(config.num_layers)]
    head = embedding if config.tied_head else source.matrix(config.vocab_size, config.dim)
    return Mixtral(config, MixtralWeights(embedding, layers, source.ones(config.dim), ops.pack_linear(head)), ops)


class _Source:
    """Source of random matrices, drawn one after another from one generator."""

    def __init__(self, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> None:
        self._dtype = dtype
        self._device = device
        self._generator = generator

    def matrix(self, outputs: int, inputs: int) -> Tensor:
        drawn = torch.randn(outputs, inputs, dtype=self._dtype, device=self._device, generator=self._generator)
        return drawn.mul_(inputs**-0.5)

    def ones(self, size: int) -> Tensor:
        return torch.ones(size, dtype=self._dtype, device=self._device)

    def ffn(self, config: ModelConfig) -> FfnWeights:
        w1, w3 = self.matrix(config.hidden_dim, config.dim), self.matrix(config.hidden_dim, config.dim)
        return FfnWeights(w1, w3, self.matrix(config.dim, config.hidden_dim))


def _layer(config: ModelConfig, ops: Ops, source: _Source) -> LayerWeights:
    heads = config.num_heads + 2 * config.num_kv_heads
    return LayerWeights(
        attention_norm=source.ones(config.dim),
        qkv=ops.pack_linear(source.matrix(heads * config.head_dim, config.dim)),
        output=ops.pack_linear(source.matrix(config.dim, config.num_heads * config.head_dim)),
        ffn_norm=source.ones(config.dim),
        ffn=_feed_forward(config, ops, source),
    )


def _feed_forward(config: ModelConfig, ops: Ops, source: _Source) -> object:
    if not config.num_experts:
        return ops.pack_ffn(source.ffn(config))
    return ops.pack_moe(source.matrix(config.num_experts, config.dim), _experts(config, source))


def _experts(config: ModelConfig, source: _Source) -> Iterator[FfnWeights]:
    for _ in range(config.num_experts):
        yield source.ffn(config)
