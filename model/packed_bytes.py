"""How much memory weights take in a backend's own form."""

from torch import Tensor


def packed_bytes(packed: object) -> int:
    """The bytes of all tensors in what a backend packed: a tensor, or a dataclass of such."""
    if isinstance(packed, Tensor):
        return packed.nbytes
    if isinstance(packed, list | tuple):
        return sum(map(packed_bytes, packed))
    fields = getattr(packed, "__dataclass_fields__", {})
    return sum(packed_bytes(getattr(packed, name)) for name in fields)
