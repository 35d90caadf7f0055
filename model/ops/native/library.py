"""The C library behind native.py: where it is, what it is called with, which instruction sets it runs here.

Knows addresses and numbers only; what they mean is in model/native/smoe_native.h, which this file must agree with.
"""

import ctypes
import weakref
from ctypes import POINTER, c_float, c_int, c_int64, c_uint32, c_uint64, c_void_p
from pathlib import Path

from model.ops.native.sampling import SamplingArguments
from model.ops.native.structs import NetworkArguments, StepArguments

ABI_VERSION = 6
LIBRARY = Path(__file__).parents[2] / "native" / "libsmoe_native.so"
ISAS = ("portable", "avx2", "avx512", "avx512bf16", "amx")  # the number of an instruction set is its place here

# pool, isa, dtype; kernels that work with packed weights take their format next
_KERNEL = (c_void_p, c_int, c_int)
_SIGNATURES = {
    "smoe_abi_version": (c_int, ()),
    "smoe_isa_available": (c_int, (c_int,)),
    "smoe_pool_create": (c_void_p, (c_int,)),
    "smoe_pool_destroy": (None, (c_void_p,)),
    "smoe_pool_heartbeat": (None, (c_void_p, POINTER(c_uint64))),
    "smoe_packed_size": (c_int64, (c_int, c_int64, c_int64)),
    "smoe_packed_pair_size": (c_int64, (c_int, c_int64, c_int64)),
    "smoe_pack": (None, (*_KERNEL, c_int, *(c_void_p,) * 2, *(c_int64,) * 2)),
    "smoe_pack_pair": (None, (*_KERNEL, c_int, *(c_void_p,) * 3, *(c_int64,) * 2)),
    "smoe_linear": (c_int, (*_KERNEL, c_int, *(c_void_p,) * 3, *(c_int64,) * 3, c_int)),
    "smoe_ffn": (c_int, (*_KERNEL, c_int, *(c_void_p,) * 4, *(c_int64,) * 3)),
    "smoe_moe": (c_int, (*_KERNEL, c_int, *(c_void_p,) * 8, *(c_int64,) * 5)),
    "smoe_route": (c_int, (*_KERNEL, *(c_void_p,) * 5, *(c_int64,) * 4)),
    "smoe_rms_norm": (None, (*_KERNEL, *(c_void_p,) * 3, *(c_int64,) * 2, c_float)),
    "smoe_add_rms_norm": (None, (*_KERNEL, *(c_void_p,) * 4, *(c_int64,) * 2, c_float)),
    "smoe_rotary_angles": (None, (c_void_p, c_int, *(c_void_p,) * 4, *(c_int64,) * 2)),
    "smoe_rope_and_store_kv": (c_int, (*_KERNEL, c_int, *(c_void_p,) * 7, *(c_int64,) * 4)),
    "smoe_attention": (c_int, (*_KERNEL, c_int, *(c_void_p,) * 7, *(c_int64,) * 7)),
    "smoe_forward": (c_int, (c_void_p, c_int, POINTER(NetworkArguments), POINTER(StepArguments))),
    "smoe_read_all": (c_uint32, (c_void_p, c_int, c_void_p, c_int64)),
    "smoe_peak_operations": (c_int64, (c_void_p, c_int, c_int, c_int64)),
    "smoe_sample": (c_int, (c_void_p, c_int, POINTER(SamplingArguments))),
}


class NativeUnavailableError(Exception):
    """The library, or the instruction set asked for, is not to be had here. One line that says why."""


class NativeOutdatedError(NativeUnavailableError):
    """The library was built from other sources than these: a mistake to mend, and no reason to do without it."""


class NativeLibrary:
    """The loaded library. Its functions are called as `library.call.smoe_linear(...)`."""

    def __init__(self, path: Path | None = None) -> None:
        """None: the one that was built with the package. Raises NativeUnavailableError."""
        path = path or LIBRARY
        if not path.exists():
            raise NativeUnavailableError("the CPU library was not built: no C++ compiler was found at the install")
        try:
            self.call = ctypes.CDLL(str(path))
            self._check_version()
            self._declare()
        except (OSError, AttributeError) as error:
            raise NativeUnavailableError(f"the CPU library does not load: {error}") from None

    def _declare(self) -> None:
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self.call, name)
            function.restype, function.argtypes = result, arguments

    def _check_version(self) -> None:
        version = self.call.smoe_abi_version()
        if version != ABI_VERSION:
            raise NativeOutdatedError(f"the CPU library has interface {version}, not {ABI_VERSION}: install smoe again")

    def isas(self) -> list[str]:
        """What this library holds and this CPU runs, the fastest last."""
        return [isa for number, isa in enumerate(ISAS) if self.call.smoe_isa_available(number)]


class ThreadPool:
    """The library's threads: `threads` with the caller's, which is one of them. They end with this object."""

    def __init__(self, library: NativeLibrary, threads: int) -> None:
        """Raises NativeUnavailableError where the system gives no more threads."""
        self.handle = library.call.smoe_pool_create(threads)
        if not self.handle:
            raise NativeUnavailableError(f"{threads} threads cannot be started")
        weakref.finalize(self, library.call.smoe_pool_destroy, self.handle)
