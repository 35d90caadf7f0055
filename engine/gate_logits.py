"""The gate logits of one position as the engine sends them: packed, because a reply may have hundreds per token."""

import struct
from collections.abc import Sequence


def by_layer(packed: bytes, num_layers: int) -> list[Sequence[float]]:
    """Return the layers of a position: 2 layers of 3 experts are 24 bytes of little-endian float32 -> [2][3]."""
    numbers = struct.unpack(f"<{len(packed) // 4}f", packed)
    width = len(numbers) // num_layers
    return [numbers[first : first + width] for first in range(0, len(numbers), width)]
