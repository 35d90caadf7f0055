"""Read from config.json how a checkpoint was quantized. Other formats are refused by name, with a way out."""

from collections.abc import Callable
from pathlib import Path

from model.checkpoint.config_fields import JsonFields
from model.checkpoint.errors import CheckpointError
from model.checkpoint.headers import read_headers
from model.checkpoint.json_files import read_json_object
from model.checkpoint.stored_tensor import PackedEncoding

MAX_GROUP = 1 << 20
WAY_OUT = "use the model's bf16, AWQ, GPTQ or GGUF files instead"
MLX_BITS = (2, 3, 4, 5, 6, 8)
MAX_SIDE_FILE_BYTES = 1 << 20
SIDE_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}  # of AutoGPTQ and AutoAWQ
AWQ_KEYS = ("w_bit", "zero_point", "version")
OLD_KEYS = {"w_bit": "bits", "q_group_size": "group_size"}  # AutoAWQ's
# Formats whose tensors have a layout for one kernel of one program.
REFUSED_METHODS = (
    "exl2",
    "hqq",
    "marlin",
    "aqlm",
    "quip",
    "eetq",
    "vptq",
    "spqr",
    "higgs",
    "torchao",
    "quark",
    "mxfp4",
)


def read_scheme(fields: JsonFields) -> PackedEncoding | None:
    """Return the encoding of the matrices; None if the checkpoint is not quantized. Raises CheckpointError."""
    mlx = fields.section("quantization")
    if mlx is not None and fields.get("quantization_config") in (None, fields.get("quantization")):
        return _mlx(mlx)
    quantization = fields.section("quantization_config")
    if quantization is None:
        return _of_side_file(fields.file.parent)
    method = quantization.get("quant_method")
    if method is None and quantization.get("load_in_4bit") is not None:
        method = "bitsandbytes"
    read = METHODS.get(method.lower()) if isinstance(method, str) else None
    if read is None:
        if method in REFUSED_METHODS:
            raise quantization.error(f"{method} checkpoints are not supported; {WAY_OUT}")
        raise quantization.error(
            f"{quantization.described('quant_method')}; supported are {', '.join(METHODS)}; {WAY_OUT}"
        )
    return read(quantization)


def _refused(fields: JsonFields, name: str, way_out: str = WAY_OUT) -> CheckpointError:
    return fields.error(f"{fields.described(name)}, which is not supported; {way_out}")


def _of_side_file(directory: Path) -> PackedEncoding | None:
    """Return the encoding of files of 2023, whose config.json does not name it; None if there is none.

    A file that lies beside plain weights says nothing about them.
    """
    for name, method in SIDE_FILES.items():
        path = directory / name
        if path.is_file() and _has_codes(directory):
            values = read_json_object(path, MAX_SIDE_FILE_BYTES)
            renamed = {OLD_KEYS.get(key, key): value for key, value in values.items()}
            if "bits" in renamed:  # other programs write files of these names
                of_keys = "awq" if any(key in values for key in AWQ_KEYS) else method
                return METHODS[of_keys](JsonFields(path, renamed))
    return None


def _has_codes(directory: Path) -> bool:
    """Return whether a tensor holds codes, as matrices of GPTQ and AWQ do. False without safetensors, as in a pack;
    whoever reads the weights reports files that are missing or damaged."""
    try:
        return any(name.endswith(".qweight") for name in read_headers(directory))
    except CheckpointError:
        return False


def _group_size(fields: JsonFields) -> int:
    """Return the inputs that share a scale; 0 for all, which files write as -1."""
    size = fields.get("group_size")
    if type(size) is not int or not (size == -1 or 1 <= size <= MAX_GROUP):
        raise fields.error(f"{fields.described('group_size')}, not a number of inputs, or -1 for all inputs")
    return max(0, size)


def _bits(fields: JsonFields, supported: tuple[int, ...], name: str = "bits") -> int:
    bits = fields.get(name)
    if type(bits) is not int or bits not in supported:
        raise fields.error(f"{fields.described(name)}; supported: {', '.join(map(str, supported))}; {WAY_OUT}")
    return bits


def _awq(fields: JsonFields) -> PackedEncoding:
    name = "version" if fields.get("version") is not None else "format"
    version = fields.get(name, "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise _refused(fields, name, "use a file of version gemm, the usual one")
    has_zeros = fields.get("zero_point") is not False
    return PackedEncoding("awq", _bits(fields, (4,)), _group_size(fields), has_zeros)


def _gptq(fields: JsonFields) -> PackedEncoding:
    if fields.flag("is_marlin_format"):
        raise _refused(fields, "is_marlin_format", "use the GPTQ file that it was made from")
    name = "checkpoint_format" if fields.get("checkpoint_format") is not None else "format"
    version = fields.get(name, "gptq")
    if version not in ("gptq", "gptq_v2"):
        raise _refused(fields, name, "use the GPTQ file that it was made from")
    offset = 1 if version == "gptq" else 0
    bits, group, is_ordered = _bits(fields, (4, 8)), _group_size(fields), not fields.flag("desc_act")
    return PackedEncoding("gptq", bits, group, zero_offset=offset, is_ordered=is_ordered)


def _auto_round(fields: JsonFields) -> PackedEncoding:
    packing = str(fields.get("packing_format", "auto_round"))
    if "awq" in packing:
        return PackedEncoding("awq", _bits(fields, (4,)), _group_size(fields))
    is_gptq = packing.endswith("auto_gptq")
    is_symmetric = fields.flag("sym")
    if not is_gptq and (not is_symmetric or not packing.startswith("auto_round")):
        raise _refused(fields, "packing_format", "export it in the format auto_gptq or auto_awq")
    return PackedEncoding("gptq", _bits(fields, (4, 8)), _group_size(fields), has_zeros=is_gptq, zero_offset=1)


def _compressed_tensors(fields: JsonFields) -> PackedEncoding:
    layout = fields.get("format")
    if layout not in ("pack-quantized", "float-quantized", "int-quantized", "naive-quantized"):
        raise _refused(fields, "format")
    weights = _weights_of_groups(fields)
    strategy, kind = weights.get("strategy"), weights.get("type", "int")
    is_in_blocks = layout == "float-quantized" and strategy == "block"
    if strategy not in ("tensor", "channel", "group") and not is_in_blocks:
        raise _refused(weights, "strategy")
    if kind not in (("int",) if layout == "pack-quantized" else ("int", "float")):
        raise _refused(weights, "type")
    if layout == "pack-quantized":
        group = weights.positive("group_size", MAX_GROUP) if strategy == "group" else 0
        has_zeros = not weights.flag("symmetric")
        return PackedEncoding("compressed-tensors", _bits(weights, (4, 8), "num_bits"), group, has_zeros)
    _bits(weights, (8,), "num_bits")
    if is_in_blocks:
        if kind != "float":
            raise _refused(weights, "type")
        return _blocks(weights, "block_structure")
    if strategy == "group":
        raise _refused(weights, "strategy")
    return PackedEncoding("fp8") if kind == "float" else PackedEncoding("int8", has_zeros=not weights.flag("symmetric"))


def _weights_of_groups(fields: JsonFields) -> JsonFields:
    """Return the settings of the weights, which all groups of layers must share."""
    groups = fields.section("config_groups")
    values = [] if groups is None else [groups.section(name) for name in groups.names()]
    weights = [group.section("weights") for group in values if group is not None]
    found = [each for each in weights if each is not None]
    if not found or any(each.as_dict() != found[0].as_dict() for each in found):
        raise fields.error(f"quantization_config.config_groups has not one kind of weights; {WAY_OUT}")
    return found[0]


def _fp8(fields: JsonFields) -> PackedEncoding:
    return PackedEncoding("fp8") if fields.get("weight_block_size") is None else _blocks(fields, "weight_block_size")


def _blocks(fields: JsonFields, name: str) -> PackedEncoding:
    """Return FP8 with a scale per block of [outputs, inputs]."""
    block = fields.get(name)
    is_pair = isinstance(block, list) and len(block) == 2
    if not is_pair or not all(type(size) is int and 1 <= size <= MAX_GROUP for size in block):
        raise _refused(fields, name)
    return PackedEncoding("fp8-blocks", group_size=block[1], block_rows=block[0])


def _bitsandbytes(fields: JsonFields) -> PackedEncoding:
    if not fields.flag("load_in_4bit"):
        raise fields.error(
            f"quantization_config has no load_in_4bit; of bitsandbytes only 4 bits are supported; {WAY_OUT}"
        )
    if fields.get("bnb_4bit_quant_storage", "uint8") != "uint8":
        raise _refused(fields, "bnb_4bit_quant_storage")
    return PackedEncoding("bitsandbytes", 4)


def _mlx(fields: JsonFields) -> PackedEncoding:
    if fields.get("mode", "affine") != "affine":
        raise _refused(fields, "mode")
    return PackedEncoding("mlx", _bits(fields, MLX_BITS), fields.positive("group_size", MAX_GROUP))


METHODS: dict[str, Callable[[JsonFields], PackedEncoding]] = {
    "awq": _awq,
    "gptq": _gptq,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "bitsandbytes": _bitsandbytes,
}
