"""Memory with fences: every new tensor lies between bytes that no kernel may touch, and begins without numbers.

A read beyond a tensor gives NaN (index 0 in integers), an output that is not written is NaN or 0, and a write beyond
one is an error. Where the addresses of each access are known (Triton's interpreter), a read beyond one is an error too.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FENCE = 0xFF  # as a byte: NaN in every floating-point type and in e4m3
FENCE_OF_INDICES = 0x00  # of int32 and int64: a plausible index, which -1 is not
FENCE_BYTES = 1 << 13  # on each side
MOST_BYTES = 1 << 26  # larger tensors have no fences
EMPTY = (torch.empty, torch.empty_like, Tensor.new_empty)
FILLED = (
    torch.arange, torch.cat, torch.full, torch.ones, torch.rand, torch.randint, torch.randn, torch.stack, torch.tensor,
    torch.zeros, torch.zeros_like, Tensor.clone, Tensor.contiguous, Tensor.new_zeros, Tensor.to,
)  # fmt: skip


class FencedMemory(TorchFunctionMode):
    """Puts fences around new tensors inside the `with` block; `check` raises AssertionError if one was overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self._fenced: list[tuple[Tensor, int, str]] = []  # whole memory, its fence, and what it holds
        self._places: list[tuple[int, int, str]] = []  # first address and end of the whole, and what it holds; sorted

    def __torch_function__(
        self, func: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func not in EMPTY + FILLED or "out" in kwargs or not isinstance(made, Tensor):
            return made
        if not made.is_contiguous() or made.is_meta or made.dtype == torch.bool or not 0 < made.nbytes <= MOST_BYTES:
            return made
        if func in FILLED and any(made is given for given in args):  # nothing was copied
            return made
        return self._fence(made, is_filled=func in FILLED)

    def _fence(self, made: Tensor, is_filled: bool) -> Tensor:
        byte = FENCE_OF_INDICES if made.dtype in (torch.int32, torch.int64) else FENCE
        whole = torch.full((made.nbytes + 2 * FENCE_BYTES,), byte, dtype=torch.uint8, device=made.device)
        inside = whole[FENCE_BYTES:-FENCE_BYTES].view(made.dtype).view(made.shape)
        if is_filled:
            inside.copy_(made)
        text = f"{made.dtype} {tuple(made.shape)}"
        self._fenced.append((whole, byte, text))
        insort(self._places, (whole.data_ptr(), whole.data_ptr() + whole.nbytes, text))
        return inside

    def check(self) -> None:
        """Check the fences of all tensors that were made."""
        for whole, byte, text in self._fenced:
            for name, fence in (("before", whole[:FENCE_BYTES]), ("behind", whole[-FENCE_BYTES:])):
                assert bool((fence == byte).all()), f"a kernel wrote {name} a tensor: {text}"

    def check_access(self, lowest: int, highest: int) -> None:
        """Check one access to a tensor, by the lowest and the highest address of its elements.

        Raises AssertionError if one of them lies in a fence, or only one of them in a tensor with fences.
        """
        place, other = self._place(lowest), self._place(highest)
        assert place == other, f"a kernel read or wrote beyond a tensor: {(place or other or ('',))[-1]}"
        assert place is None or self.is_inside(lowest, highest), f"a kernel read or wrote beyond a tensor: {place[-1]}"

    def is_inside(self, lowest: int, highest: int) -> bool:
        """True if both addresses lie in the same tensor with fences."""
        place = self._place(lowest)
        return place is not None and place[0] + FENCE_BYTES <= lowest and highest < place[1] - FENCE_BYTES

    def _place(self, address: int) -> tuple[int, int, str] | None:
        """Return the fenced memory that holds an address: its first address, its end, and the tensor in it."""
        index = bisect_left(self._places, (address + 1,)) - 1
        return self._places[index] if index >= 0 and address < self._places[index][1] else None
