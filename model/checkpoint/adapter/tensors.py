"""Names and shapes of an adapter's tensors, and the matrices of the network that they belong to."""

import re
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint.adapter.config import AdapterConfig
from model.checkpoint.errors import CheckpointError
from model.checkpoint.headers import read_headers
from model.checkpoint.json_files import printable
from model.checkpoint.stored_tensor import StoredTensor
from model.checkpoint.tensor_names import READ_DTYPES
from model.config import ModelConfig
from model.cut import PANEL

FILE_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
NAME = re.compile(r"base_model\.model\.(?:model\.)?layers\.(\d{1,6})\.(.+)\.lora_([AB])(?:\.default)?\.weight")
EXPERT = re.compile(r"(?:block_sparse_moe|mlp)\.experts\.(\d{1,6})\.(w[123])")
SUPPORTED = "q_proj, k_proj, v_proj, o_proj"

Shape = tuple[int, int]


@dataclass(frozen=True)
class TargetMatrix:
    """A matrix that may have a term."""

    index: int  # of its term among those of its layer, see model/lora/adapter.py
    num_outputs: int
    num_inputs: int
    first_output: int = 0  # among the outputs of q, k and v, one below the other


@dataclass(frozen=True)
class StoredTerm:
    """The tensors of one term."""

    layer: int
    target: TargetMatrix
    a: StoredTensor  # [r, inputs]
    b: StoredTensor  # [outputs, r]
    scale: float

    @property
    def memory_bytes(self) -> int:
        """Bytes in memory, in bfloat16 if the file has both matrices so and else in float32.

        Ranks and inputs are padded as model/lora/adapter.py lays them out: rank 5 of 40 inputs and 33 outputs takes
        8 * 40 + 64 * 6 numbers in bfloat16, and 8 * 40 + 64 * 5 in float32.
        """
        pair = 2 if self.a.dtype == self.b.dtype == "BF16" else 1
        (rank, num_inputs), (num_outputs, _) = self.a.shape, self.b.shape
        of_inputs = _padded(rank, 4) * _padded(num_inputs, 4 * pair)
        return (of_inputs + _padded(num_outputs, PANEL) * _padded(rank, pair)) * 4 // pair


def read_adapter_tensors(directory: Path, adapter: AdapterConfig, model: ModelConfig) -> list[StoredTerm]:
    """Read the headers of the adapter in `directory`; return its terms for a model of this config.

    Raises CheckpointError unless every tensor belongs to a matrix of the model and has the shape and type for it.
    """
    targets = target_matrices(model)
    found: dict[tuple[int, str], dict[str, StoredTensor]] = {}
    for tensor in read_headers(directory, FILE_NAME).values():
        layer, module, part = _place(tensor, targets, model, adapter)
        if part in found.setdefault((layer, module), {}):
            raise CheckpointError(f"{tensor.file}: the matrix {part} of {printable(_module_name(tensor))} occurs twice")
        found[layer, module][part] = tensor
    if not found:
        raise CheckpointError(f"{directory / FILE_NAME} has no tensors")
    terms = []
    for (layer, module), parts in found.items():
        only = next(iter(parts.values()))
        if len(parts) == 1:
            missing = "lora_B" if "A" in parts else "lora_A"
            raise CheckpointError(f"{only.file}: tensor {only.name} has no {missing} beside it")
        target, name = targets[module], _module_name(only)
        rank = adapter.ranks.of(name)
        _check(parts["A"], (rank, target.num_inputs), rank, adapter)
        _check(parts["B"], (target.num_outputs, rank), rank, adapter)
        terms.append(StoredTerm(layer, target, parts["A"], parts["B"], adapter.scale_of(name, rank)))
    return terms


def target_matrices(model: ModelConfig) -> dict[str, TargetMatrix]:
    """Return the matrices of a layer that may have a term, by name."""
    dim, hidden = model.dim, model.hidden_dim
    q, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    targets = {
        "self_attn.q_proj": TargetMatrix(0, q, dim),
        "self_attn.k_proj": TargetMatrix(1, kv, dim, q),
        "self_attn.v_proj": TargetMatrix(2, kv, dim, q + kv),
        "self_attn.o_proj": TargetMatrix(3, dim, q),
    }
    if not model.num_experts:
        names = {"mlp.gate_proj": (hidden, dim), "mlp.up_proj": (hidden, dim), "mlp.down_proj": (dim, hidden)}
        return targets | {name: TargetMatrix(4 + i, *shape) for i, (name, shape) in enumerate(names.items())}
    for expert in range(model.num_experts):
        for index, (name, shape) in enumerate({"w1": (hidden, dim), "w3": (hidden, dim), "w2": (dim, hidden)}.items()):
            targets[f"experts.{expert}.{name}"] = TargetMatrix(4 + 3 * expert + index, *shape)
    return targets


def _place(
    tensor: StoredTensor, targets: dict[str, TargetMatrix], model: ModelConfig, adapter: AdapterConfig
) -> tuple[int, str, str]:
    """Return layer, matrix and part, A or B, of a tensor."""
    match = NAME.fullmatch(tensor.name)
    module = match[2] if match else ""
    if expert := EXPERT.fullmatch(module):
        module = f"experts.{int(expert[1])}.{expert[2]}"
    where = f"{tensor.file}: tensor {printable(tensor.name.removeprefix(PREFIX))}"
    if match is None or (module not in targets and not expert):
        ffn = "w1, w2 and w3 of experts" if model.num_experts else "gate_proj, up_proj and down_proj"
        raise CheckpointError(f"{where} is no LoRA matrix of {SUPPORTED}, or {ffn}; no others are supported")
    layer = int(match[1])
    if layer >= model.num_layers or module not in targets:
        has = f"{model.num_layers} layers" + (f" with {model.num_experts} experts" if model.num_experts else "")
        raise CheckpointError(f"{where}: this model has {has}; the adapter belongs to {adapter.base_model}")
    return layer, module, match[3]


def _padded(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _module_name(tensor: StoredTensor) -> str:
    return tensor.name.removeprefix(PREFIX).partition(".lora_")[0]


def _check(tensor: StoredTensor, shape: Shape, rank: int, adapter: AdapterConfig) -> None:
    where = f"{tensor.file}: tensor {tensor.name}"
    if tensor.shape != shape:
        raise CheckpointError(
            f"{where} has shape {list(tensor.shape)}, but rank {rank} and this model require {list(shape)}; "
            f"the adapter belongs to {adapter.base_model}"
        )
    if tensor.dtype not in READ_DTYPES:
        raise CheckpointError(f"{where} has dtype {tensor.dtype}; supported are {', '.join(READ_DTYPES)}")
