"""Read stored weights and decode quantized ones.

Tensors are read into allocated memory, not through a memory map: each byte is then in memory only once, and a file
that shrinks while it is read raises an error instead of a bus fault. Letters: O outputs, D inputs of a matrix.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.checkpoint.errors import CheckpointError
from model.checkpoint.gguf.block_decoders import decode_blocks
from model.checkpoint.gguf.block_types import BY_NAME
from model.checkpoint.quantized.decoders import ROW_STEP, DecodeRows, row_decoder
from model.checkpoint.stored_tensor import PackedMatrix, StoredTensor, StoredWeight
from model.ops.huge_pages import empty
from model.ops.weights import BlockMatrix

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}  # by their names in files
NUM_READS = 4  # at once: one thread copies more slowly from the page cache than several, and a disk reads more slowly
PIECE_BYTES = 8 << 20  # of a tensor, read by one thread
CHUNK_WEIGHTS = 1 << 15  # decoded at once: temporary arrays stay in the cache, and below the size that malloc maps anew
# Types of the parts of quantized matrices, by their names in safetensors files.
ARRAY_TYPES = {"I8": "i1", "U8": "u1", "F8_E4M3": "u1", "I32": "<i4", "U32": "<u4", "I64": "<i8"}


def read_weight(
    stored: StoredWeight, dtype: torch.dtype, first: int = 0, count: int | None = None, num_threads: int = 1
) -> Tensor:
    """Read entries first .. first + count - 1 of a weight's first axis into new memory; without `count`, to the end.

    Quantized weights are decoded to `dtype`, by `num_threads` threads; others keep the type that they are stored in.
    Raises CheckpointError.
    """
    count = stored.shape[0] - first if count is None else count
    if isinstance(stored, PackedMatrix):
        decode = row_decoder(stored, read_parts(stored))
        return _decoded(*stored.shape, dtype, decode, num_threads)[first : first + count]
    if stored.dtype not in DTYPES:
        return decode_matrix(read_block_matrix(stored, first, count), dtype, num_threads)
    weight = read_bytes(stored, first, count).view(DTYPES[stored.dtype]).view(count, *stored.shape[1:])
    return in_rotary_order(weight, stored.interleaved_heads) if stored.interleaved_heads else weight


def read_block_matrix(stored: StoredTensor, first: int = 0, count: int | None = None) -> BlockMatrix:
    """Read rows first .. first + count - 1 of a GGUF matrix as they are. Raises CheckpointError."""
    count = stored.shape[0] - first if count is None else count
    rows = read_bytes(stored, first, count).view(count, -1)
    return BlockMatrix(
        stored.dtype, in_rotary_order(rows, stored.interleaved_heads) if stored.interleaved_heads else rows
    )


def decode_matrix(matrix: BlockMatrix, dtype: torch.dtype, num_threads: int) -> Tensor:
    """Decode a matrix in blocks of any GGUF type: [O, D] of `dtype`."""
    block_type, rows = BY_NAME[matrix.format], matrix.blocks.numpy()
    num_inputs = rows.shape[1] // block_type.block_bytes * block_type.block_len

    def decode(first: int, last: int) -> NDArray[np.float32]:
        blocks = rows[first:last].reshape(-1, block_type.block_bytes)
        return decode_blocks(matrix.format, blocks).reshape(-1, num_inputs)

    return _decoded(len(rows), num_inputs, dtype, decode, num_threads)


def read_parts(matrix: PackedMatrix) -> dict[str, NDArray[Any]]:
    """Read the parts of a quantized matrix. Raises CheckpointError."""
    return {name: _array(tensor) for name, tensor in matrix.parts.items()}


def _array(tensor: StoredTensor) -> NDArray[Any]:
    """Read a part of a quantized matrix: floats as float32, FP8 as bytes, integers as they are."""
    content = read_bytes(tensor, 0, tensor.shape[0] if tensor.shape else 1)
    if tensor.dtype in DTYPES:
        return content.view(DTYPES[tensor.dtype]).float().numpy().reshape(tensor.shape)
    return content.numpy().view(ARRAY_TYPES[tensor.dtype]).reshape(tensor.shape)


def read_bytes(tensor: StoredTensor, first: int, count: int) -> Tensor:
    """Read the bytes of entries first .. first + count - 1 of a tensor's first axis: [bytes] uint8."""
    entry_bytes = tensor.num_bytes // (tensor.shape[0] if tensor.shape else 1)
    # In huge pages: page faults for every 4 KB would take longer than reading.
    content = empty(count * entry_bytes, torch.uint8)

    def fill(at: int) -> None:
        fill_from(tensor, first * entry_bytes + at, content[at : at + PIECE_BYTES])

    if content.nbytes <= PIECE_BYTES:
        fill(0)
    else:
        with ThreadPoolExecutor(NUM_READS, thread_name_prefix="read") as threads:
            list(threads.map(fill, range(0, content.nbytes, PIECE_BYTES)))
    return content


def in_rotary_order(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder the outputs [O, D] of heads whose rows alternate between the halves of rotary pairs.

    Rows 0, K/2, 1, K/2 + 1, ... of each head of K rows become rows 0, 1, 2, ...
    """
    num_rows, num_inputs = weight.shape
    return weight.view(num_heads, -1, 2, num_inputs).transpose(1, 2).reshape(num_rows, num_inputs)


def fill_from(tensor: StoredTensor, start: int, content: Tensor) -> None:
    """Read the tensor's bytes from `start` on into `content` [bytes] uint8. Raises CheckpointError."""
    memory, done = content.numpy().data, 0
    try:
        with tensor.file.open("rb", buffering=0) as file:
            file.seek(tensor.start + start)
            while done < len(memory):
                num_read = file.readinto(memory[done:])
                if not num_read:
                    raise CheckpointError(f"{tensor.file} ends within tensor {tensor.name}")
                done += num_read
    except OSError as error:
        raise CheckpointError(f"{tensor.file}: tensor {tensor.name} cannot be read: {error.strerror}") from None


def _decoded(num_rows: int, num_inputs: int, dtype: torch.dtype, decode: DecodeRows, num_threads: int) -> Tensor:
    """Decode a matrix in parts, in parallel: [O, D] of `dtype`."""
    weight = empty(num_rows * num_inputs, dtype).view(num_rows, num_inputs)
    step = max(ROW_STEP, CHUNK_WEIGHTS // num_inputs // ROW_STEP * ROW_STEP)

    def fill(first: int) -> None:
        weight[first : first + step] = torch.from_numpy(decode(first, min(first + step, num_rows)))

    with ThreadPoolExecutor(num_threads, thread_name_prefix="decode") as threads:
        list(threads.map(fill, range(0, num_rows, step)))
    return weight
