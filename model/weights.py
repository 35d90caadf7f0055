"""A checkpoint's tensors, checked against the config and handed to the backend one by one.

Two layouts of the experts are read, both Hugging Face's: classic, one tensor per expert and matrix
(`block_sparse_moe.experts.3.w1.weight`), and fused, one per layer (`mlp.experts.gate_up_proj`, w1 above w3).
Shape letters as in model/mixtral.py; F hidden dim, E experts.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint import DTYPES, StoredTensor, read_headers, read_tensor
from model.config import ModelConfig
from model.errors import CheckpointError
from model.json_file import shown
from model.mixtral import LayerWeights, Mixtral, MixtralWeights
from model.ops import FfnWeights, Ops

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
FUSED_W13, FUSED_W2 = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
# Old conversions carry the rotary angles; they follow from the config.
STORED_ANGLES = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")

Shape = tuple[int, ...]


def load_model(
    path: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    ops: Ops,
    on_progress: Callable[[int, int], None],
) -> Mixtral:
    """The network of the checkpoint in directory `path`, its weights as `dtype` on `device`, packed by `ops`.

    All headers are checked against the config before the first weight is allocated; then tensor after tensor is read,
    converted and packed, so that at the peak one copy of the weights and one tensor are held. `on_progress` is told
    (loaded bytes, total bytes) of the files after each tensor. Raises CheckpointError.
    """
    stored = checked_tensors(path, config)
    source = WeightSource(stored, dtype, device, on_progress)
    return Mixtral(config, _build(config, source, ops), ops)


def checked_tensors(path: Path, config: ModelConfig) -> dict[str, StoredTensor]:
    """The checkpoint's tensors by name: just those that the config implies, in shape and kind. Reads headers only."""
    stored = {name: tensor for name, tensor in read_headers(path).items() if not STORED_ANGLES.fullmatch(name)}
    expected = expected_shapes(config, fused=any(name.endswith(FUSED_W13) for name in stored))
    if config.tied_head and HEAD not in stored:
        del expected[HEAD]
    missing = [name for name in expected if name not in stored]
    if missing:
        raise CheckpointError(f"{path}: tensor {missing[0]} is missing{_and_more(missing)}")
    unknown = [name for name in stored if name not in expected]
    if unknown:
        file = stored[unknown[0]].file
        raise CheckpointError(f"{file}: tensor {shown(unknown[0])} has no place in this model{_and_more(unknown)}")
    for name, shape in expected.items():
        _check_tensor(stored[name], shape)
    return stored


def expected_shapes(config: ModelConfig, fused: bool) -> dict[str, Shape]:
    """Every tensor that a checkpoint of this config holds, the head included."""
    shapes: dict[str, Shape] = {EMBEDDING: (config.vocab_size, config.dim)}
    for layer in range(config.num_layers):
        names = _layer_shapes(config, fused)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in names.items()}
    return shapes | {NORM: (config.dim,), HEAD: (config.vocab_size, config.dim)}


def _layer_shapes(config: ModelConfig, fused: bool) -> dict[str, Shape]:
    dim, q, kv = config.dim, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "input_layernorm.weight": (dim,),
        "self_attn.q_proj.weight": (q, dim),
        "self_attn.k_proj.weight": (kv, dim),
        "self_attn.v_proj.weight": (kv, dim),
        "self_attn.o_proj.weight": (dim, q),
        "post_attention_layernorm.weight": (dim,),
    } | _ffn_shapes(config, fused)


def _ffn_shapes(config: ModelConfig, fused: bool) -> dict[str, Shape]:
    up: Shape = (config.hidden_dim, config.dim)
    down: Shape = (config.dim, config.hidden_dim)
    if not config.num_experts:
        return {"mlp.gate_proj.weight": up, "mlp.up_proj.weight": up, "mlp.down_proj.weight": down}
    experts, gate = range(config.num_experts), (config.num_experts, config.dim)
    if fused:
        w13 = (config.num_experts, 2 * config.hidden_dim, config.dim)
        return {"mlp.gate.weight": gate, FUSED_W13: w13, FUSED_W2: (config.num_experts, *down)}
    matrices = {"w1": up, "w2": down, "w3": up}
    names = {f"block_sparse_moe.experts.{e}.{w}.weight": shape for e in experts for w, shape in matrices.items()}
    return {"block_sparse_moe.gate.weight": gate} | names


def _check_tensor(tensor: StoredTensor, shape: Shape) -> None:
    where = f"{tensor.file}: tensor {tensor.name}"
    if tensor.shape != shape:
        raise CheckpointError(f"{where} has shape {list(tensor.shape)}, but the config wants {list(shape)}")
    if tensor.dtype not in DTYPES:
        raise CheckpointError(f"{where} has dtype {tensor.dtype}; read are {', '.join(DTYPES)}")


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


class WeightSource:
    """Reads checked tensors by name, converts them and reports progress."""

    def __init__(
        self,
        stored: dict[str, StoredTensor],
        dtype: torch.dtype,
        device: torch.device,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._stored = stored
        self._dtype = dtype
        self._device = device
        self._on_progress = on_progress
        self._loaded_bytes = 0
        self._total_bytes = sum(tensor.num_bytes for tensor in stored.values())

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def read(self, name: str) -> Tensor:
        """A whole tensor."""
        return self._read(name, 0, self._stored[name].shape[0])

    def read_entry(self, name: str, index: int) -> Tensor:
        """One expert's matrix of a fused tensor: [E, O, D] -> [O, D]."""
        return self._read(name, index, 1)[0]

    def _read(self, name: str, first: int, count: int) -> Tensor:
        tensor = self._stored[name]
        weight = read_tensor(tensor, first, count).to(self._device, self._dtype)
        self._loaded_bytes += tensor.num_bytes * count // tensor.shape[0]
        self._on_progress(self._loaded_bytes, self._total_bytes)
        return weight


def _build(config: ModelConfig, source: WeightSource, ops: Ops) -> MixtralWeights:
    embedding = source.read(EMBEDDING)
    layers = [_layer(config, source, ops, f"model.layers.{layer}.") for layer in range(config.num_layers)]
    norm = source.read(NORM)
    head = source.read(HEAD) if HEAD in source else embedding  # a stored head goes before tying, as in transformers
    return MixtralWeights(embedding, layers, norm, ops.pack_linear(head))


def _layer(config: ModelConfig, source: WeightSource, ops: Ops, prefix: str) -> LayerWeights:
    attention = prefix + "self_attn."
    qkv = torch.cat([source.read(f"{attention}{name}_proj.weight") for name in "qkv"])
    return LayerWeights(
        attention_norm=source.read(prefix + "input_layernorm.weight"),
        qkv=ops.pack_linear(qkv),
        output=ops.pack_linear(source.read(attention + "o_proj.weight")),
        ffn_norm=source.read(prefix + "post_attention_layernorm.weight"),
        ffn=_feed_forward(config, source, ops, prefix),
    )


def _feed_forward(config: ModelConfig, source: WeightSource, ops: Ops, prefix: str) -> object:
    if not config.num_experts:
        gate, up, down = (source.read(f"{prefix}mlp.{name}_proj.weight") for name in ("gate", "up", "down"))
        return ops.pack_ffn(FfnWeights(w1=gate, w3=up, w2=down))
    if prefix + FUSED_W13 in source:
        return ops.pack_moe(source.read(prefix + "mlp.gate.weight"), _fused_experts(config, source, prefix))
    moe = prefix + "block_sparse_moe."
    return ops.pack_moe(source.read(moe + "gate.weight"), _classic_experts(config, source, moe + "experts."))


def _classic_experts(config: ModelConfig, source: WeightSource, prefix: str) -> Iterator[FfnWeights]:
    """One after the other. No name is bound to a matrix here: that would keep it while the next expert is read."""
    for expert in range(config.num_experts):
        yield FfnWeights(*(source.read(f"{prefix}{expert}.{name}.weight") for name in ("w1", "w3", "w2")))


def _fused_experts(config: ModelConfig, source: WeightSource, prefix: str) -> Iterator[FfnWeights]:
    for expert in range(config.num_experts):
        w13, w2 = prefix + FUSED_W13, prefix + FUSED_W2
        yield _split_w13(source.read_entry(w13, expert), source.read_entry(w2, expert))


def _split_w13(w13: Tensor, w2: Tensor) -> FfnWeights:
    w1, w3 = w13.chunk(2)
    return FfnWeights(w1, w3, w2)
