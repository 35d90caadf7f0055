"""The tensors of a network in the native layout, by name, and the network that they form.

Names: embedding, norm, head.0, layers.3.qkv.0, layers.3.output.0, layers.3.gate, layers.3.experts.7 and so on. Number
i of qkv, output and head is matrix i of a NativeLinear. An expert is one tensor, the panels of w13 before those of w2,
so that one read fetches it. A matrix whose inputs are out of order has its order in NAME.order.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from model.checkpoint.errors import CheckpointError
from model.config import ModelConfig
from model.cut import PANEL
from model.mixtral import LayerWeights, MixtralWeights
from model.ops.native.packed_weights import (
    BLOCK_FORMATS,
    DTYPES,
    EMBEDDING_DTYPES,
    NativeExperts,
    NativeLinear,
    NativeMatrix,
    NativeMoe,
    Order,
)
from model.ops.weights import BLOCK_SIZES

FORMATS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3, "lossless": 64} | BLOCK_FORMATS
FORMAT_NAMES = {code: name for name, code in FORMATS.items()}

Parts: TypeAlias = Sequence[Tensor]  # the bytes of one tensor, one behind the other
Write: TypeAlias = Callable[[str, Parts], None]
PanelSize: TypeAlias = Callable[[int, int], int]  # bytes of a panel of a format, for so many inputs


class NetworkTensors:
    """Splits a network into named tensors, and collects the rest, which is small, in `matrices`."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self.matrices: dict[str, Any] = {}

    def tensor(self, name: str, tensor: Tensor) -> None:
        """Write a tensor of numbers: embedding or a norm."""
        self._write(name, [tensor])

    def layer(self, index: int, layer: LayerWeights) -> None:
        """Write all tensors of a layer, experts last."""
        prefix = f"layers.{index}."
        self.tensor(f"{prefix}attention_norm", layer.attention_norm)
        self.linear(f"{prefix}qkv", layer.qkv)
        self.linear(f"{prefix}output", layer.output)
        self.tensor(f"{prefix}ffn_norm", layer.ffn_norm)
        experts = layer.ffn
        if isinstance(layer.ffn, NativeMoe):
            self.tensor(f"{prefix}gate", layer.ffn.gate)
            experts = layer.ffn.experts
        self._experts(f"{prefix}experts", experts)

    def linear(self, name: str, linear: NativeLinear) -> None:
        """Write matrices that are one below the other."""
        described = [self._matrix(f"{name}.{index}", matrix) for index, matrix in enumerate(linear.matrices)]
        self.matrices[name] = {"num_inputs": linear.num_inputs, "matrices": described}

    def _matrix(self, name: str, matrix: NativeMatrix) -> dict[str, Any]:
        self._write(name, [matrix.panels])
        if matrix.order is not None:
            self._write(f"{name}.order", [matrix.order])
        return {"outputs": matrix.num_outputs, "format": FORMAT_NAMES[matrix.format]}

    def _experts(self, name: str, experts: NativeExperts) -> None:
        for index in range(experts.num_experts):  # at equal distances, so without their orders between them
            self._write(f"{name}.{index}", [experts.w13[index], experts.w2[index]])
        for index, orders in enumerate(experts.orders):
            for matrix, order in zip(("w1", "w3", "w2"), orders, strict=True):
                if order is not None and not (matrix == "w3" and order is orders[0]):
                    self._write(f"{name}.{index}.{matrix}.order", [order])
        self.matrices[name] = {
            "formats": [FORMAT_NAMES[code] for code in experts.formats],
            "shares_order": [orders[1] is orders[0] for orders in experts.orders],
        }


class StoredNetwork:
    """Builds a network from named tensors; they stay where they are."""

    def __init__(
        self, config: ModelConfig, tensors: dict[str, Tensor], matrices: dict[str, Any], panel_size: PanelSize
    ) -> None:
        """`tensors`: flat bytes of panels and experts, others with their shapes and types."""
        self._config = config
        self._tensors = tensors
        self._matrices = matrices
        self._panel_size = panel_size

    def weights(self) -> MixtralWeights:
        """Return the network's weights.

        Raises CheckpointError if a tensor is missing, or has another size or type than the kernels will read.
        """
        try:
            return self._weights()
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__} {error}"
            raise CheckpointError(f"the pack is damaged: its matrices are not described ({reason})") from None

    def _weights(self) -> MixtralWeights:
        config = self._config
        layers = [self._layer(f"layers.{index}.") for index in range(config.num_layers)]
        embedding = self._numbers("embedding", (config.vocab_size, config.dim), *EMBEDDING_DTYPES)
        head = self._linear("head", config.dim, config.vocab_size)
        return MixtralWeights(embedding, layers, self._norm("norm"), head)

    def _layer(self, prefix: str) -> LayerWeights:
        config = self._config
        width = config.num_heads * config.head_dim
        return LayerWeights(
            attention_norm=self._norm(f"{prefix}attention_norm"),
            qkv=self._linear(f"{prefix}qkv", config.dim, width + 2 * config.num_kv_heads * config.head_dim),
            output=self._linear(f"{prefix}output", width, config.dim),
            ffn_norm=self._norm(f"{prefix}ffn_norm"),
            ffn=self._feed_forward(prefix),
        )

    def _feed_forward(self, prefix: str) -> NativeMoe | NativeExperts:
        experts = self._experts(f"{prefix}experts")
        if not self._config.num_experts:
            return experts
        gate = self._numbers(f"{prefix}gate", (self._config.num_experts, self._config.dim), torch.float32)
        return NativeMoe(gate, experts)

    def _linear(self, name: str, num_inputs: int, num_outputs: int) -> NativeLinear:
        described = self._described(name)["matrices"]
        matrices = tuple(self._matrix(f"{name}.{index}", num_inputs, one) for index, one in enumerate(described))
        linear = NativeLinear(matrices, num_inputs)
        if linear.num_outputs != num_outputs:
            raise CheckpointError(f"the pack is damaged: {name} has {linear.num_outputs} outputs, not {num_outputs}")
        return linear

    def _matrix(self, name: str, num_inputs: int, described: dict[str, Any]) -> NativeMatrix:
        num_outputs = described["outputs"]
        code, stride = self._format(described["format"], num_inputs)
        panels = self._flat(name, -(-num_outputs // PANEL) * stride)
        return NativeMatrix(panels, num_outputs, stride, code, self._order(f"{name}.order", num_inputs))

    def _experts(self, name: str) -> NativeExperts:
        config, described = self._config, self._described(name)
        name1, name3, name2 = described["formats"]
        (format1, size1), (format3, size3) = self._format(name1, config.dim), self._format(name3, config.dim)
        format2, size2 = self._format(name2, config.hidden_dim)
        bytes13 = -(-config.hidden_dim // PANEL) * (size1 + size3)
        bytes2 = -(-config.dim // PANEL) * size2
        num_experts = max(1, config.num_experts)
        each = [self._flat(f"{name}.{expert}", bytes13 + bytes2) for expert in range(num_experts)]
        return NativeExperts(
            w13=_rows([one[:bytes13] for one in each]),
            w2=_rows([one[bytes13:] for one in each]),
            formats=(format1, format3, format2),
            panel_sizes=(size1, size3, size2),
            orders=[
                self._orders(f"{name}.{expert}", described["shares_order"][expert]) for expert in range(num_experts)
            ],
            num_experts=num_experts,
            dim=config.dim,
            hidden_dim=config.hidden_dim,
            num_hidden=config.hidden_dim,
            num_outputs=config.dim,
        )

    def _orders(self, name: str, is_shared: bool) -> tuple[Order, Order, Order]:
        dim, hidden_dim = self._config.dim, self._config.hidden_dim
        order1 = self._order(f"{name}.w1.order", dim)
        order3 = order1 if is_shared else self._order(f"{name}.w3.order", dim)
        return order1, order3, self._order(f"{name}.w2.order", hidden_dim)

    def _format(self, name: str, num_inputs: int) -> tuple[int, int]:
        """Return the code of a format, and the bytes of a panel in it."""
        numbers, _ = BLOCK_SIZES.get(name, (1, 0))
        if num_inputs % numbers:
            raise CheckpointError(f"the pack is damaged: {num_inputs} inputs are no whole blocks of {name}")
        return FORMATS[name], self._panel_size(FORMATS[name], num_inputs)

    def _order(self, name: str, num_inputs: int) -> Order:
        """Return the order of a matrix' inputs, if it has one. The kernels read what it names without checks."""
        if name not in self._tensors:
            return None
        order = self._numbers(name, (num_inputs,), torch.int32)
        if not torch.equal(order.sort().values, torch.arange(num_inputs, dtype=torch.int32)):
            raise CheckpointError(f"the pack is damaged: tensor {name} does not name each input once")
        return order

    def _described(self, name: str) -> dict[str, Any]:
        described: dict[str, Any] | None = self._matrices.get(name)
        if described is None:
            raise CheckpointError(f"the pack is damaged: it does not describe {name}")
        return described

    def _flat(self, name: str, num_bytes: int) -> Tensor:
        return self._numbers(name, (num_bytes,), torch.uint8)

    def _norm(self, name: str) -> Tensor:
        """Return the weights of a norm: all norms have the type of the last one."""
        last = self._tensors.get("norm")
        dtype = torch.float32 if last is None or last.dtype not in DTYPES else last.dtype
        return self._numbers(name, (self._config.dim,), dtype)

    def _numbers(self, name: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> Tensor:
        tensor = self._tensors.get(name)
        if tensor is None or tuple(tensor.shape) != shape:
            found = "is missing" if tensor is None else f"has the shape {list(tensor.shape)}, not {list(shape)}"
            raise CheckpointError(f"the pack is damaged: tensor {name} {found}")
        if tensor.dtype not in dtypes:
            raise CheckpointError(f"the pack is damaged: tensor {name} has the type {tensor.dtype}")
        return tensor


def _rows(rows: list[Tensor]) -> Tensor:
    """Return a view [E, bytes] of equally long rows at equal distances in one piece of memory."""
    if len(rows) == 1:
        return rows[0].unsqueeze(0)
    offsets = [row.data_ptr() - rows[0].data_ptr() for row in rows]
    stride = offsets[1]
    if stride < 0 or offsets != [index * stride for index in range(len(rows))]:
        raise CheckpointError("the pack is damaged: its experts are not at equal distances")
    return torch.as_strided(rows[0], (len(rows), len(rows[0])), (stride, 1))
