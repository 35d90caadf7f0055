"""The part of one rank of a packed network: views of the panels that the rank has (model/cut.py)."""

from collections.abc import Iterator
from dataclasses import replace

from model.checkpoint.errors import CheckpointError
from model.config import ModelConfig
from model.cut import PANEL, Cut
from model.mixtral import LayerWeights, MixtralWeights
from model.ops.native.packed_weights import NativeExperts, NativeLinear, NativeMatrix, NativeMoe


def part_of_rank(weights: MixtralWeights, config: ModelConfig, cut: Cut) -> MixtralWeights:
    """Return the weights of a rank; its tensors are views of those of the whole network.

    Raises CheckpointError if the rank's first query, key or value is not the first output of a panel.
    """
    if cut.size == 1:
        return weights
    layers = [_layer(layer, config, cut) for layer in weights.layers]
    return replace(weights, layers=layers, head=_outputs(weights.head, [cut.part(config.vocab_size, PANEL)]))


def _layer(layer: LayerWeights, config: ModelConfig, cut: Cut) -> LayerWeights:
    if isinstance(layer.ffn, NativeMoe):
        ffn: NativeMoe | NativeExperts = replace(layer.ffn, experts=_experts(layer.ffn.experts, cut))
    else:
        ffn = _experts(layer.ffn, cut)
    output = _outputs(layer.output, [cut.part(config.dim, PANEL)])
    return replace(layer, qkv=_outputs(layer.qkv, list(_heads(config, cut))), output=output, ffn=ffn)


def _heads(config: ModelConfig, cut: Cut) -> Iterator[range]:
    """Yield the outputs of queries, keys and values that the rank has, which are one below the other.

    Example: 4 query heads and 2 KV heads of 32 on 2 ranks: rank 1 has 64 .. 127, 160 .. 191 and 224 .. 255.
    """
    first = 0
    for num_heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads):
        count = num_heads * config.head_dim
        part = cut.part(count, count // config.num_kv_heads)
        yield range(first + part.start, first + part.stop)
        first += count


def _outputs(linear: NativeLinear, parts: list[range]) -> NativeLinear:
    """Return matrices with these runs of outputs, in order."""
    return replace(linear, matrices=tuple(matrix for part in parts for matrix in _run(linear, part)))


def _run(linear: NativeLinear, part: range) -> Iterator[NativeMatrix]:
    """Yield the matrices that one run of outputs is in."""
    first = 0
    for matrix in linear.matrices:
        start, stop = max(part.start - first, 0), min(part.stop - first, matrix.num_outputs)
        if start < stop:
            yield _rows(matrix, range(start, stop))
        first += matrix.num_outputs


def _rows(matrix: NativeMatrix, rows: range) -> NativeMatrix:
    if rows.start % PANEL:
        raise CheckpointError(f"a pack is cut only between panels of {PANEL} outputs: serve the checkpoint on ranks")
    first, end = rows.start // PANEL * matrix.stride, -(-rows.stop // PANEL) * matrix.stride
    return replace(matrix, panels=matrix.panels[first:end], num_outputs=len(rows))


def _experts(experts: NativeExperts, cut: Cut) -> NativeExperts:
    """Return the rank's panels of w1 and w3, which alternate, and of w2."""
    size1, size3, size2 = experts.panel_sizes
    hidden, outputs = cut.part(experts.hidden_dim, PANEL), cut.part(experts.dim, PANEL)
    return replace(
        experts,
        w13=experts.w13[:, _bytes(hidden, size1 + size3)],
        w2=experts.w2[:, _bytes(outputs, size2)],
        num_hidden=len(hidden),
        num_outputs=len(outputs),
    )


def _bytes(rows: range, panel_bytes: int) -> slice:
    return slice(rows.start // PANEL * panel_bytes, -(-rows.stop // PANEL) * panel_bytes)
