"""Read the JSON object that bitsandbytes stores in a tensor beside each matrix of 4 bits."""

import json
from dataclasses import replace
from typing import Any

from model.checkpoint.errors import CheckpointError
from model.checkpoint.stored_tensor import PackedMatrix, StoredTensor

STATE = "weight.quant_state.bitsandbytes__"
MAX_STATE_BYTES = 4096
MAX_OFFSET = 1e30  # of scales, which are float32; a number of JSON may be infinite, NaN, or have any number of digits
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def read_state(matrix: PackedMatrix) -> PackedMatrix:
    """Return the matrix with the group size and the offset of its state, and without that part.

    Raises CheckpointError for a state that is missing, damaged, or of another shape.
    """
    state_names = [part for part in matrix.parts if part.startswith(STATE)]
    if len(state_names) != 1:
        raise CheckpointError(f"{matrix.file}: tensor {matrix.name} has no quant_state of bitsandbytes")
    tensor = matrix.parts[state_names[0]]
    state = _read_object(tensor)
    where = f"{tensor.file}: tensor {tensor.name}"
    if state.get("shape") != list(matrix.shape):
        raise CheckpointError(f"{where} has another shape than the config requires: {list(matrix.shape)}")
    size, offset = state.get("blocksize"), state.get("nested_offset", 0.0)
    is_nested = "weight.nested_absmax" in matrix.parts
    if size not in BLOCK_SIZES or (is_nested and state.get("nested_blocksize") != 256):
        raise CheckpointError(f"{where} has a block size that is not supported")
    if type(offset) not in (int, float) or not abs(offset) <= MAX_OFFSET:
        raise CheckpointError(f"{where} has no valid nested_offset")
    if is_nested and "weight.nested_quant_map" not in matrix.parts:
        raise CheckpointError(f"{matrix.file}: tensor {matrix.name} has no nested_quant_map")
    parts = {part: stored for part, stored in matrix.parts.items() if part != state_names[0]}
    return replace(matrix, encoding=replace(matrix.encoding, group_size=size), parts=parts, offset=float(offset))


def _read_object(tensor: StoredTensor) -> dict[str, Any]:
    where = f"{tensor.file}: tensor {tensor.name}"
    if tensor.dtype != "U8" or tensor.num_bytes > MAX_STATE_BYTES:
        raise CheckpointError(f"{where} is not a state of bitsandbytes")
    try:
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.start)
            state = json.loads(stream.read(tensor.num_bytes))
    except OSError as error:
        raise CheckpointError(f"{tensor.file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{where} is not valid JSON") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{where} is not a JSON object")
    return state
