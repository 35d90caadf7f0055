"""Read matrices in groups (AWQ, GPTQ, compressed-tensors, MLX) as blocks, without rounding a weight."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from model.checkpoint.quantized.decoders import ROW_STEP, CodesInGroups, codes_in_groups
from model.checkpoint.stored_tensor import PackedMatrix
from model.ops.huge_pages import empty
from model.ops.weights import BLOCK_SIZES, BlockMatrix, groups_with_minima, groups_with_zeros
from model.stored_weights import read_parts

CHUNK_CODES = 1 << 18  # unpacked at once, a byte each


def read_group_matrix(stored: PackedMatrix, block_format: str, num_threads: int) -> BlockMatrix:
    """Read a matrix. Inputs whose groups are out of order are sorted by group. Raises CheckpointError."""
    num_outputs, num_inputs = stored.shape
    found = codes_in_groups(stored, read_parts(stored))
    order = found.order()
    numbers, size = BLOCK_SIZES[block_format]
    row_bytes = num_inputs // numbers * size
    blocks = empty(num_outputs * row_bytes, torch.uint8).view(num_outputs, row_bytes)
    step = max(ROW_STEP, CHUNK_CODES // num_inputs // ROW_STEP * ROW_STEP)
    bits = stored.encoding.code_bits

    def fill(first: int) -> None:
        rows = slice(first, min(first + step, num_outputs))
        codes = found.codes_of(rows.start, rows.stop)
        codes = codes if order is None else codes.take(order, axis=1)
        blocks[rows] = _blocks(found, torch.from_numpy(codes), rows, numbers, bits)

    with ThreadPoolExecutor(num_threads, thread_name_prefix="groups") as threads:
        list(threads.map(fill, range(0, num_outputs, step)))
    return BlockMatrix(block_format, blocks, None if order is None else torch.from_numpy(order).int())


def _blocks(found: CodesInGroups, codes: Tensor, rows: slice, numbers: int, bits: int) -> Tensor:
    """Return rows of blocks; groups larger than `numbers` are divided."""
    repeats = codes.shape[1] // found.scales.shape[1] // numbers
    scales = torch.from_numpy(found.scales[rows]).repeat_interleave(repeats, 1)  # [r, groups]
    rest = found.zeros if found.minima is None else found.minima
    assert rest is not None
    build = groups_with_zeros if found.minima is None else groups_with_minima
    return build(codes, scales, torch.from_numpy(rest[rows]).repeat_interleave(repeats, 1), bits).blocks
