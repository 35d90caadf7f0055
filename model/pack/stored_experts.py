"""A network whose experts are read from its pack when a step needs them."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from model.checkpoint.pack.direct_file import open_cached, open_direct
from model.checkpoint.pack.experts import ExpertTensors
from model.mixtral import LayerWeights, MixtralWeights
from model.ops.native.expert_store import Read, StoredExperts
from model.ops.native.ops import NativeOps
from model.ops.native.packed_weights import NativeMoe


def with_expert_store(
    weights: MixtralWeights,
    experts: ExpertTensors,
    mapped: Tensor,
    file: Path,
    ops: NativeOps,
    num_slots: int,
    read: Read | None = None,
    *,
    in_page_cache: bool = False,
) -> MixtralWeights:
    """Return weights whose experts are read from `file` into `num_slots` slots.

    `mapped`: the file's bytes, of which `weights` are views. `read` reads in place of the file. `in_page_cache`: the
    slots are pages of the mapped file. Raises CheckpointError, MemoryError, and NativeUnavailableError if threads
    cannot be started.
    """
    stored = StoredExperts(
        positions=[[tensor.start for tensor in layer] for layer in experts.layers],
        num_bytes=[layer[0].num_bytes for layer in experts.layers],
        mapped=mapped,
    )
    source = read or (open_cached(file) if in_page_cache else open_direct(file))
    store = ops.store_experts(stored, num_slots, str(file), source, in_page_cache=in_page_cache)

    def stored_layer(index: int, layer: LayerWeights) -> LayerWeights:
        assert isinstance(layer.ffn, NativeMoe)
        in_store = replace(layer.ffn.experts, store=store, stored_layer=index)
        return replace(layer, ffn=replace(layer.ffn, experts=in_store))

    return replace(weights, layers=[stored_layer(index, layer) for index, layer in enumerate(weights.layers)])
