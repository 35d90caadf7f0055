"""Load a checkpoint: read its tensors one at a time and let the backend pack them.

Shape letters as in model/mixtral.py.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint.checkpoint import read_stored_weights
from model.checkpoint.errors import CheckpointError, UncodableError
from model.checkpoint.pack.header import is_pack
from model.checkpoint.rank_parts import RankParts
from model.checkpoint.stored_tensor import PackedMatrix, StoredTensor, StoredWeight
from model.checkpoint.tensor_names import EMBEDDING, FUSED_W2, FUSED_W13, HEAD, NORM, part_of
from model.checkpoint.weight_sizes import kept_in_blocks
from model.config import ModelConfig
from model.group import ALONE, Group
from model.mixtral import LayerWeights, Mixtral, MixtralWeights
from model.ops.huge_pages import empty
from model.ops.interface import FfnWeights, Ops, PackedWeights
from model.ops.weights import BlockMatrix, BlockStream, TensorStream, Weight
from model.packed_groups import read_group_matrix
from model.slice_reader import SliceReader
from model.stored_weights import DTYPES, decode_matrix, read_block_matrix, read_weight


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How the weights of a checkpoint are read."""

    dtype: torch.dtype  # of the weights
    device: torch.device
    on_progress: Callable[[int, int], None] = lambda loaded, total: None  # after each tensor, in bytes of the files
    group: Group = ALONE  # a rank of it reads and packs only the rows of its part
    check_values: bool = False  # reject NaN and Inf, and experts whose weights are all zero
    num_threads: int = 1  # that decode quantized weights and pack


def load_model(path: Path, config: ModelConfig, ops: Ops, options: LoadOptions) -> Mixtral:
    """Load the checkpoint `path`, a directory or a GGUF file, as a network.

    Weights in blocks that `ops` multiplies stay in them; norms, and so the sums between layers, are then float32. A
    rank reads all of a matrix that several tensors encode (AWQ, GPTQ and others) and packs its part.

    Checks all headers against the config before it allocates the first weight. Then reads, converts and packs (by
    `ops`) one tensor at a time. Where `ops` packs streams, matrices are read in slices, the next ones while one is
    packed: the peak is then one copy of the weights and the slices of model/slice_reader.py. Elsewhere, and for
    matrices that are decoded or put in another order, it is one copy and one tensor or expert. Of streams that
    cannot be read, the first one in order fails, as if nothing was read ahead. Raises CheckpointError.
    """
    source = open_network(path, config, ops, options)
    embedding, layers = source.embedding(), list(source.layers())
    weights = MixtralWeights(embedding, layers, source.norm(), source.head(embedding))
    return Mixtral(config, weights, ops, options.group)


def open_network(path: Path, config: ModelConfig, ops: Ops, options: LoadOptions) -> "NetworkSource":
    """Check the headers of a checkpoint, and return its weights to be loaded part by part.

    Raises CheckpointError, also for a pack, whose weights are packed already.
    """
    if is_pack(path):
        raise CheckpointError(f"{path} is a pack; here the checkpoint is needed that it was made of")
    stored = read_stored_weights(path, config)
    in_blocks = kept_in_blocks(stored, ops.block_formats)
    parts = RankParts(stored, config.num_kv_heads, options.group.cut)
    return NetworkSource(config, TensorReader(parts, in_blocks, ops.packs_streams, options), ops)


class NetworkSource:
    """Weights of a checkpoint, read and packed part by part; in the order of the methods, each once."""

    def __init__(self, config: ModelConfig, source: "TensorReader", ops: Ops) -> None:
        self._config = config
        self._source = source
        self._ops = ops

    def embedding(self) -> Tensor:
        return self._source.read_embedding()

    def layers(self) -> Iterator[LayerWeights]:
        """Yield each layer; it is read when it is asked for."""
        for layer in range(self._config.num_layers):
            try:
                yield _layer(self._config, self._source, self._ops, f"model.layers.{layer}.")
            except UncodableError as error:
                raise CheckpointError(f"layer {layer}: {error}") from None

    def norm(self) -> Tensor:
        return self._source.read_norm(NORM)

    def head(self, embedding: Tensor) -> PackedWeights:
        """Return the packed output head: of `embedding` if it is tied."""
        return self._ops.pack_linear(self._source.read_head(embedding))


class TensorReader:
    """Reader of checked tensors by name; converts them to dtype and device and reports progress."""

    def __init__(self, parts: RankParts, in_blocks: Collection[str], packs_streams: bool, options: LoadOptions) -> None:
        dtype = options.dtype
        self._parts = parts
        self._in_blocks = in_blocks
        self._packs_streams = packs_streams
        self._options = options
        self._slices = SliceReader(options.num_threads)
        self._dtype = dtype
        self._residual_dtype = torch.float32 if in_blocks else dtype
        self._embedding_dtype = torch.float16 if in_blocks and dtype == torch.bfloat16 else dtype
        self._loaded_bytes = 0
        self._total_bytes = parts.num_bytes()
        if HEAD in in_blocks and HEAD not in parts:
            self._total_bytes += parts.part(HEAD).num_bytes  # the embedding is read again, as the head

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def read(self, name: str) -> Tensor:
        """Read a tensor; of a matrix that is cut the rank's rows."""
        tensor = self._parts.part(name)
        rows = self._parts.rows(name)
        return self._read(tensor, rows if isinstance(tensor, PackedMatrix) else range(len(rows)), self._dtype)

    def read_embedding(self) -> Tensor:
        """Read the embedding: beside weights in blocks in float16, an eighth of the rounding of bfloat16."""
        tensor = self._parts.part(EMBEDDING)
        return self._read(tensor, range(tensor.shape[0]), self._embedding_dtype)

    def read_norm(self, name: str) -> Tensor:
        """Read the weights of a norm, in the dtype of the sums between layers."""
        tensor = self._parts.part(name)
        return self._read(tensor, range(tensor.shape[0]), self._residual_dtype)

    def read_matrix(self, name: str) -> Weight:
        """Read a matrix for a backend to pack: in its blocks, if the backend multiplies them."""
        if name in self._in_blocks:
            return self._read_blocks(name)
        return self._tensor_stream(self._parts.part(name)) if self.is_streamed(name) else self.read(name)

    def is_streamed(self, name: str) -> bool:
        """True if the bytes of a matrix, or of the experts in a tensor, are read while they are packed."""
        tensor = self._parts.part(name)
        if not self._packs_streams or not isinstance(tensor, StoredTensor) or tensor.interleaved_heads:
            return False
        return not self._options.check_values if name in self._in_blocks else tensor.dtype in DTYPES

    def read_head(self, embedding: Tensor) -> Weight:
        """Read the output head. A stored one takes precedence over tying, as in transformers."""
        if HEAD in self._parts or HEAD in self._in_blocks:
            return self.read_matrix(HEAD)
        rows = self._parts.rows(HEAD)
        shared = embedding if len(rows) == len(embedding) else embedding[rows.start : rows.stop]
        return shared.to(self._dtype)

    def read_entry(self, name: str, index: int, matrix: int = 0, num_matrices: int = 1) -> Weight:
        """Read one expert's matrix of a fused tensor: [E, num_matrices * O, D] -> [O, D], or the rank's rows of it."""
        tensor = self._parts.entry(name, index, matrix, num_matrices)
        if self.is_streamed(name):
            return self._tensor_stream(tensor)
        return self._read(tensor, range(tensor.shape[0]), self._dtype)

    def _read(self, tensor: StoredWeight, rows: range, dtype: torch.dtype) -> Tensor:
        options = self._options
        weight = read_weight(tensor, dtype, rows.start, len(rows), options.num_threads).to(options.device, dtype)
        if options.check_values:
            _check_numbers(tensor, weight)
        self._count(tensor.num_bytes)
        return weight

    def _read_blocks(self, name: str) -> BlockMatrix | BlockStream:
        tensor = self._parts.part(name)
        if isinstance(tensor, StoredTensor) and self.is_streamed(name):
            slices = self._counted(tensor, self._slices.read(tensor))
            return BlockStream(tensor.dtype, (tensor.shape[0], tensor.shape[1]), slices)
        if isinstance(tensor, PackedMatrix):
            if self._options.check_values:
                _check_numbers(tensor, read_weight(tensor, self._dtype, num_threads=self._options.num_threads))
            matrix = read_group_matrix(tensor, tensor.dtype, self._options.num_threads)
            rows = self._parts.rows(name)
            if len(rows) < len(matrix.blocks):
                matrix = replace(matrix, blocks=matrix.blocks[rows.start : rows.stop].clone())
        else:
            matrix = read_block_matrix(tensor)
            if self._options.check_values:
                _check_numbers(tensor, decode_matrix(matrix, self._dtype, self._options.num_threads))
        self._count(tensor.num_bytes)
        return matrix

    def _tensor_stream(self, tensor: StoredWeight) -> TensorStream:
        """Start to read a matrix in slices of the dtype that is packed."""
        assert isinstance(tensor, StoredTensor)
        stored_dtype, dtype = DTYPES[tensor.dtype], self._dtype
        rows: Iterator[Tensor] = (part.view(stored_dtype) for part in self._slices.read(tensor))
        if stored_dtype != dtype:
            rows = _converted(rows, dtype)
        if self._options.check_values:
            rows = _checked(tensor, rows)
        return TensorStream(dtype, (tensor.shape[0], tensor.shape[1]), self._counted(tensor, rows))

    def _counted(self, tensor: StoredTensor, slices: Iterator[Tensor]) -> Iterator[Tensor]:
        yield from slices
        self._count(tensor.num_bytes)

    def _count(self, num_bytes: int) -> None:
        self._loaded_bytes += num_bytes
        self._options.on_progress(self._loaded_bytes, self._total_bytes)


def _converted(slices: Iterator[Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
    """Convert slices to `dtype`, each into the memory of the one before: touching new pages would take longer."""
    memory = empty(0, dtype)
    for rows in slices:
        if len(memory) < rows.numel():
            memory = empty(rows.numel(), dtype)
        yield memory[: rows.numel()].view(rows.shape).copy_(rows)


def _checked(tensor: StoredTensor, slices: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yield the slices of a tensor; raise CheckpointError as _check_numbers does for the whole."""
    has_weights = False
    for rows in slices:
        _check_finite(tensor, rows)
        has_weights = has_weights or bool(rows.any())
        yield rows
    _check_presence(tensor, has_weights)


def _check_numbers(tensor: StoredWeight, weight: Tensor) -> None:
    """Check the converted weights: a float32 number beyond the range of bfloat16 is rejected as well."""
    _check_finite(tensor, weight)
    _check_presence(tensor, bool(weight.any()))


def _check_finite(tensor: StoredWeight, weight: Tensor) -> None:
    if not bool(weight.isfinite().all()):
        raise CheckpointError(f"{tensor.file}: tensor {tensor.name} contains NaN or Inf")


def _check_presence(tensor: StoredWeight, has_weights: bool) -> None:
    if part_of(tensor.name) == "experts" and not has_weights:
        raise CheckpointError(f"{tensor.file}: tensor {tensor.name} has an expert whose weights are all zero")


def _layer(config: ModelConfig, source: TensorReader, ops: Ops, prefix: str) -> LayerWeights:
    attention = prefix + "self_attn."
    return LayerWeights(
        attention_norm=source.read_norm(prefix + "input_layernorm.weight"),
        qkv=ops.pack_linear(*(source.read_matrix(f"{attention}{name}_proj.weight") for name in "qkv")),
        output=ops.pack_linear(source.read_matrix(attention + "o_proj.weight")),
        ffn_norm=source.read_norm(prefix + "post_attention_layernorm.weight"),
        ffn=_feed_forward(config, source, ops, prefix),
    )


def _feed_forward(config: ModelConfig, source: TensorReader, ops: Ops, prefix: str) -> object:
    if not config.num_experts:
        gate, up, down = (source.read_matrix(f"{prefix}mlp.{name}_proj.weight") for name in ("gate", "up", "down"))
        return ops.pack_ffn(FfnWeights(w1=gate, w3=up, w2=down))
    if prefix + FUSED_W13 in source:
        return ops.pack_moe(source.read(prefix + "mlp.gate.weight"), _fused_experts(config, source, prefix))
    moe = prefix + "block_sparse_moe."
    return ops.pack_moe(source.read(moe + "gate.weight"), _classic_experts(config, source, moe + "experts."))


def _classic_experts(config: ModelConfig, source: TensorReader, prefix: str) -> Iterator[FfnWeights]:
    def read(expert: int) -> FfnWeights:
        return FfnWeights(*(source.read_matrix(f"{prefix}{expert}.{name}.weight") for name in ("w1", "w3", "w2")))

    names = (f"{prefix}{expert}.{name}.weight" for expert in range(config.num_experts) for name in ("w1", "w3", "w2"))
    return _experts(config, read, all(map(source.is_streamed, names)))


def _fused_experts(config: ModelConfig, source: TensorReader, prefix: str) -> Iterator[FfnWeights]:
    w13, w2 = prefix + FUSED_W13, prefix + FUSED_W2

    def read(expert: int) -> FfnWeights:
        return FfnWeights(
            source.read_entry(w13, expert, 0, 2), source.read_entry(w13, expert, 1, 2), source.read_entry(w2, expert)
        )

    return _experts(config, read, source.is_streamed(w13) and source.is_streamed(w2))


def _experts(config: ModelConfig, read: Callable[[int], FfnWeights], are_streams: bool) -> Iterator[FfnWeights]:
    """Yield one expert at a time. No name is bound to a matrix, which would keep it alive while the next is read.

    Streams hold no weights: the next expert's are opened before this one is packed, so that reading goes on.
    """
    if not are_streams:
        yield from map(read, range(config.num_experts))
        return
    following = read(0)
    for expert in range(1, config.num_experts):
        current, following = following, read(expert)
        yield current
    yield following
