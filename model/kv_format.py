"""How K and V are stored: the numbers as they are, or int8 with a scale per position and KV head. Free of torch."""

from typing import Literal, TypeAlias

KvDtype: TypeAlias = Literal["float32", "bfloat16", "int8"]

SCALE_BYTES = 4  # a float32 behind the numbers of each int8 row
NUMBER_BYTES: dict[KvDtype, int] = {"float32": 4, "bfloat16": 2, "int8": 1}


def row_elements(dtype: KvDtype, head_dim: int) -> int:
    """Elements of one KV head's row at one position: the K numbers, and for int8 the 4 bytes of their scale."""
    return head_dim + (SCALE_BYTES if dtype == "int8" else 0)


def row_bytes(dtype: KvDtype, head_dim: int) -> int:
    """Bytes of that row. A head of 128 numbers takes 512, 256 or 132."""
    return row_elements(dtype, head_dim) * NUMBER_BYTES[dtype]
