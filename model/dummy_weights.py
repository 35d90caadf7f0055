"""Networks with random weights, created on the device, or without numbers: for what needs only a shape."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from model.config import ModelConfig
from model.group import ALONE, Unconnected
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


def without_numbers(model: Mixtral, ops: Ops, num_layers: int) -> Mixtral:
    """Return the network's first layers with weights on torch's meta device, which has shapes but no numbers.

    `ops` takes the place of the network's backend; it gets the weights as that one packed them.
    """
    weights = replace(model.weights, layers=model.weights.layers[:num_layers])
    group = ALONE if model.group.cut.size == 1 else Unconnected(model.group.cut)
    return Mixtral(replace(model.config, num_layers=len(weights.layers)), _on_meta(weights), ops, group)


def _on_meta(packed: Any) -> Any:
    """Move the tensors of packed weights, which are dataclasses and lists of them."""
    if isinstance(packed, Tensor):
        return torch.empty_strided(packed.shape, packed.stride(), dtype=packed.dtype, device="meta")
    if isinstance(packed, list):
        return [_on_meta(part) for part in packed]
    if is_dataclass(packed) and not isinstance(packed, type):
        return replace(packed, **{field.name: _on_meta(getattr(packed, field.name)) for field in fields(packed)})
    return packed
