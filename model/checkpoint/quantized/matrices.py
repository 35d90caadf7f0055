"""Find the network's weights in a quantized checkpoint: plain tensors, and matrices of several parts.

Whether a matrix is quantized is read from its parts, not from the config's lists of exceptions. MLX stacks the experts
of a layer in one tensor per part; an expert's part is a range of its bytes.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from model.checkpoint.errors import CheckpointError
from model.checkpoint.headers import read_headers
from model.checkpoint.json_files import printable
from model.checkpoint.quantized.bitsandbytes_state import read_state
from model.checkpoint.quantized.parts import PLAIN_DTYPES, check_parts, is_ignored_part, needed_parts, optional_parts
from model.checkpoint.quantized.scheme import MLX_BITS
from model.checkpoint.stored_tensor import PackedEncoding, PackedMatrix, StoredTensor, StoredWeight
from model.checkpoint.tensor_names import HEAD, STORED_ANGLES, Shape, and_more, expected_shapes, with_prefix
from model.config import ModelConfig

STACKED = re.compile(r"(model\.layers\.\d+\.block_sparse_moe\.)switch_mlp\.(gate|up|down)_proj\.(\w+)")
EXPERT_NAMES = {"gate": "w1", "up": "w3", "down": "w2"}
# Names of the same part in files of other programs.
ALIASES = {"fp8": {"weight_scale_inv": "weight_scale"}, "fp8-blocks": {"weight_scale": "weight_scale_inv"}}
# Scales of FP8 caches: keys and values are stored in smoe's own formats.
CACHE_SCALES = re.compile(
    r"model\.layers\.\d+\.self_attn\.((kv|k|v|q|prob)_(output_)?scale|(k|v|q)_proj\.(output|k|v|q)_scale)"
)


def quantized_weights(path: Path, config: ModelConfig, encoding: PackedEncoding) -> dict[str, StoredWeight]:
    """Read the headers in directory `path`; return the weights by their names in Hugging Face's classic layout.

    Raises CheckpointError unless names, shapes and types are exactly those that config and encoding imply.
    """
    shapes = expected_shapes(config, fused=False)
    tensors = read_headers(path) if config.generates else with_prefix(read_headers(path))
    found = _by_weight(_unstacked(tensors.values(), config.num_experts), shapes)
    if config.tied_head and HEAD not in found:
        del shapes[HEAD]
    weights: dict[str, StoredWeight] = {}
    for name, shape in shapes.items():
        if name not in found:
            raise CheckpointError(f"{path}: tensor {name} is missing, and so are its quantized parts")
        weights[name] = _weight(name, shape, found[name], encoding)
    return weights


def _unstacked(tensors: Iterable[StoredTensor], num_experts: int) -> Iterator[StoredTensor]:
    """Yield the tensors, those of MLX's stacked experts one by one under their classic names."""
    for tensor in tensors:
        match = STACKED.fullmatch(tensor.name)
        if not match:
            yield tensor
            continue
        if len(tensor.shape) != 3 or tensor.shape[0] != num_experts:
            raise CheckpointError(f"{tensor.file}: tensor {tensor.name} has not {num_experts} matrices, one per expert")
        num_bytes = tensor.num_bytes // num_experts
        for expert in range(num_experts):
            yield replace(
                tensor,
                name=f"{match[1]}experts.{expert}.{EXPERT_NAMES[match[2]]}.{match[3]}",
                shape=tensor.shape[1:],
                start=tensor.start + expert * num_bytes,
                num_bytes=num_bytes,
            )


def _by_weight(tensors: Iterator[StoredTensor], shapes: Mapping[str, Shape]) -> dict[str, dict[str, StoredTensor]]:
    """Group the tensors by the weight that they belong to, and name each by its part: "qweight", "scales"."""
    found: dict[str, dict[str, StoredTensor]] = {}
    unknown = []
    for tensor in tensors:
        if CACHE_SCALES.fullmatch(tensor.name):
            continue
        name, part = _weight_and_part(tensor.name, shapes)
        if name:
            found.setdefault(name, {})[part] = tensor
        elif not STORED_ANGLES.fullmatch(tensor.name):
            unknown.append(tensor)
    if unknown:
        names = [tensor.name for tensor in unknown]
        raise CheckpointError(
            f"{unknown[0].file}: tensor {printable(names[0])} does not belong to this model{and_more(names)}"
        )
    return found


def _weight_and_part(name: str, shapes: Mapping[str, Shape]) -> tuple[str, str]:
    """Split a tensor's name: "lm_head.qweight" belongs to "lm_head.weight" as part "qweight"; ("", "") if to none."""
    place = name.find(".")
    while place >= 0:
        weight = f"{name[:place]}.weight"
        if weight in shapes:
            return weight, name[place + 1 :]
        place = name.find(".", place + 1)
    return "", ""


def _weight(name: str, shape: Shape, parts: dict[str, StoredTensor], encoding: PackedEncoding) -> StoredWeight:
    """Return a plain tensor or a packed matrix, whose parts have the types and shapes of its encoding."""
    aliases = ALIASES.get(encoding.kind, {})
    twice = [part for part, other in aliases.items() if part in parts and other in parts]
    if twice:
        tensor, same = parts[twice[0]], parts[aliases[twice[0]]]
        raise CheckpointError(f"{tensor.file}: tensors {tensor.name} and {same.name} are the same part of a matrix")
    parts = {aliases.get(part, part): tensor for part, tensor in parts.items()}
    needed = needed_parts(encoding)
    plain = parts.get("weight")
    if plain is not None and plain.dtype in PLAIN_DTYPES and not (set(parts) - {"weight"}) & set(needed):
        _check_plain(plain, shape, parts)
        return replace(plain, name=name)
    first = next(iter(parts.values()))
    missing = [part for part in needed if part not in parts]
    if missing:
        raise CheckpointError(f"{first.file}: tensor {name.removesuffix('weight')}{missing[0]} is missing ({encoding})")
    unknown = [part for part in parts if part not in (*needed, *optional_parts(encoding)) and not is_ignored_part(part)]
    if unknown:
        tensor = parts[unknown[0]]
        raise CheckpointError(f"{tensor.file}: tensor {printable(tensor.name)} does not belong to {encoding}")
    if len(shape) != 2:
        raise CheckpointError(f"{first.file}: tensor {name} is quantized, but it is not a matrix")
    used = {part: tensor for part, tensor in parts.items() if not is_ignored_part(part)}
    if encoding.kind == "mlx":
        encoding = _of_shapes(encoding, shape[1], used)
    matrix = PackedMatrix(name, (shape[0], shape[1]), encoding, used)
    if encoding.kind == "bitsandbytes":
        matrix = read_state(matrix)
    check_parts(matrix)
    return matrix


def _of_shapes(encoding: PackedEncoding, num_inputs: int, parts: Mapping[str, StoredTensor]) -> PackedEncoding:
    """Return the encoding of an MLX matrix, which may have other bits and groups than the config gives for most."""
    num_words, num_groups = (parts[part].shape[-1] if parts[part].shape else 0 for part in ("weight", "scales"))
    bits, rest = divmod(32 * num_words, num_inputs)
    if rest or bits not in MLX_BITS or not num_groups or num_inputs % num_groups:
        return encoding
    return replace(encoding, bits=bits, group_size=num_inputs // num_groups)


def _check_plain(tensor: StoredTensor, shape: Shape, parts: Mapping[str, StoredTensor]) -> None:
    where = f"{tensor.file}: tensor {tensor.name}"
    others = [part for part in parts if part != "weight" and not is_ignored_part(part) and part != "g_idx"]
    if others:
        raise CheckpointError(f"{tensor.file}: tensor {printable(parts[others[0]].name)} does not belong to this model")
    if tensor.shape != shape:
        raise CheckpointError(f"{where} has shape {list(tensor.shape)}, but the config requires {list(shape)}")
