"""Places of the experts in a pack's file. Imports no torch."""

from dataclasses import dataclass

from model.checkpoint.errors import CheckpointError
from model.checkpoint.pack.header import PAGE_BYTES, PackedTensor, PackHeader


@dataclass(frozen=True)
class ExpertTensors:
    """The tensors of all experts: [layers][experts]. Those of a layer have equal sizes."""

    layers: list[list[PackedTensor]]

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest expert, in whole pages, as they are read."""
        return max(-(-layer[0].num_bytes // PAGE_BYTES) * PAGE_BYTES for layer in self.layers)

    @property
    def count(self) -> int:
        return sum(map(len, self.layers))

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for layer in self.layers for tensor in layer)


def expert_tensors(header: PackHeader) -> ExpertTensors:
    """Return the tensors of the experts, none of a dense model's. Raises CheckpointError if one is missing or the file
    ends within its page."""
    if not header.network["num_experts"]:
        return ExpertTensors([])
    layers, experts = range(header.network["num_layers"]), range(header.network["num_experts"])
    return ExpertTensors([[_whole_tensor(header, f"layers.{layer}.experts.{e}") for e in experts] for layer in layers])


def _whole_tensor(header: PackHeader, name: str) -> PackedTensor:
    tensor = header.tensors.get(name)
    if tensor is None or tensor.start + -(-tensor.num_bytes // PAGE_BYTES) * PAGE_BYTES > header.file_bytes:
        raise CheckpointError(f"the pack is damaged: tensor {name} is missing or no whole page")
    return tensor


def dense_tensors(header: PackHeader, experts: ExpertTensors) -> list[PackedTensor]:
    """Return all tensors that are no experts, in the order of the file."""
    of_experts = {tensor.name for layer in experts.layers for tensor in layer}
    return sorted((t for t in header.tensors.values() if t.name not in of_experts), key=lambda tensor: tensor.start)
