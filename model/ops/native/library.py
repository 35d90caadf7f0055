"""Load the C++ library: its path, the signatures of its functions, and the instruction sets it runs on this CPU.

model/native/smoe_native.h documents the functions; the signatures here must match it.
"""

import ctypes
import weakref
from ctypes import POINTER, c_float, c_int, c_int64, c_uint32, c_uint64, c_void_p
from pathlib import Path

from model.ops.native.sampling import SamplingArguments
from model.ops.native.structs import (
    ExpertArguments,
    MatrixArguments,
    NetworkArguments,
    SocketArguments,
    StepArguments,
    StoreCounts,
    StoreLayout,
)

ABI_VERSION = 24
LIBRARY = Path(__file__).parents[2] / "native" / "libsmoe_native.so"
# The index is the library's code of an instruction set.
ISAS = ("portable", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx", "neon", "neonbf16")

# pool, isa, dtype
_KERNEL = (c_void_p, c_int, c_int)
# adapters, first_term
_TERMS = (c_void_p, c_int64)
_SIGNATURES = {
    "smoe_abi_version": (c_int, ()),
    "smoe_isa_available": (c_int, (c_int,)),
    "smoe_fastest_isa": (c_int, ()),
    "smoe_pool_create": (c_void_p, (c_int,)),
    "smoe_pool_destroy": (None, (c_void_p,)),
    "smoe_pool_heartbeat": (None, (c_void_p, POINTER(c_uint64))),
    "smoe_panel_size": (c_int64, (c_int, c_int64)),
    "smoe_pack": (c_int, (*_KERNEL, c_int, *(c_void_p,) * 2, *(c_int64,) * 3)),
    "smoe_pack_blocks": (None, (c_void_p, c_int, *(c_void_p,) * 2, *(c_int64,) * 3)),
    "smoe_linear": (
        c_int,
        (*_KERNEL, c_void_p, POINTER(MatrixArguments), c_int64, c_void_p, *(c_int64,) * 2, c_int, *_TERMS, c_int64),
    ),
    "smoe_group_bytes": (c_int64, (c_int, c_int64)),
    "smoe_group_create": (c_void_p, (c_void_p, c_int, c_int, c_int64)),
    "smoe_group_destroy": (None, (c_void_p,)),
    "smoe_group_of_sockets": (c_void_p, (POINTER(SocketArguments),)),
    "smoe_group_gather": (c_int, (*(c_void_p,) * 3, *(c_int64,) * 5)),
    "smoe_group_end": (None, (c_void_p,)),
    "smoe_group_arrivals": (c_uint32, (c_void_p, c_int)),
    "smoe_read_file": (c_int64, (*(c_void_p,) * 2, *(c_int64,) * 2)),
    "smoe_populate": (c_int64, (*(c_void_p,) * 2, *(c_int64,) * 2)),
    "smoe_unpopulate": (None, (*(c_void_p,) * 2, *(c_int64,) * 2)),
    "smoe_store_create": (c_void_p, (POINTER(StoreLayout),)),
    "smoe_store_destroy": (None, (c_void_p,)),
    "smoe_store_get_counts": (None, (c_void_p, POINTER(StoreCounts))),
    "smoe_store_get_fault": (None, (c_void_p, POINTER(c_int64))),
    "smoe_ffn": (
        c_int,
        (*_KERNEL, c_void_p, POINTER(ExpertArguments), c_void_p, *(c_int64,) * 3, c_void_p, c_int64, *_TERMS),
    ),
    "smoe_moe": (
        c_int,
        (
            *(*_KERNEL, *(c_void_p,) * 2, POINTER(ExpertArguments), *(c_void_p,) * 4),
            *(*(c_int64,) * 5, c_void_p, c_int64, c_void_p, c_int64, *_TERMS),
        ),
    ),
    "smoe_route": (c_int, (*_KERNEL, *(c_void_p,) * 5, *(c_int64,) * 4)),
    "smoe_gate_logits": (None, (c_void_p, c_int, *(c_void_p,) * 3, *(c_int64,) * 3)),
    "smoe_rms_norm": (None, (*_KERNEL, *(c_void_p,) * 3, *(c_int64,) * 2, c_float)),
    "smoe_add_rms_norm": (None, (*_KERNEL, *(c_void_p,) * 4, *(c_int64,) * 2, c_float)),
    "smoe_rotary_angles": (None, (c_void_p, c_int, *(c_void_p,) * 4, *(c_int64,) * 2, c_float)),
    "smoe_rope_and_store_kv": (c_int, (*_KERNEL, c_int, c_int, *(c_void_p,) * 7, *(c_int64,) * 5)),
    "smoe_attention": (c_int, (*_KERNEL, *(c_int,) * 2, *(c_void_p,) * 7, *(c_int64,) * 7)),
    "smoe_forward": (c_int, (c_void_p, c_int, POINTER(NetworkArguments), POINTER(StepArguments))),
    "smoe_read_all": (c_uint32, (c_void_p, c_int, c_void_p, c_int64)),
    "smoe_peak_operations": (c_int64, (c_void_p, c_int, c_int, c_int64)),
    "smoe_sample": (c_int, (c_void_p, c_int, POINTER(SamplingArguments))),
}


class NativeUnavailableError(Exception):
    """The library or the requested instruction set is not available. The message gives the reason in one line."""


class NativeOutdatedError(NativeUnavailableError):
    """The library was built from other sources. Reinstall it; do not fall back to another backend."""


class NativeLibrary:
    """The loaded library. Call its functions as `library.call.smoe_linear(...)`."""

    def __init__(self, path: Path | None = None) -> None:
        """Load `path`, by default the library built with the package. Raises NativeUnavailableError."""
        path = path or LIBRARY
        if not path.exists():
            raise NativeUnavailableError("the CPU library was not built: the installation found no C++ compiler")
        try:
            self.call = ctypes.CDLL(str(path))
            self._check_version()
            self._declare()
        except (OSError, AttributeError) as error:
            raise NativeUnavailableError(f"cannot load the CPU library: {error}") from None

    def _declare(self) -> None:
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self.call, name)
            function.restype, function.argtypes = result, arguments

    def _check_version(self) -> None:
        version = self.call.smoe_abi_version()
        if version != ABI_VERSION:
            raise NativeOutdatedError(f"the CPU library has interface {version}, not {ABI_VERSION}: install smoe again")

    def isas(self) -> list[str]:
        """Return the instruction sets that both library and CPU support, in the order of ISAS."""
        return [isa for number, isa in enumerate(ISAS) if self.call.smoe_isa_available(number)]

    def fastest_isa(self) -> str:
        """Return the one of them that `--isa auto` selects."""
        return ISAS[self.call.smoe_fastest_isa()]


class ThreadPool:
    """Threads of the library; `threads` includes the caller's own thread. They end with this object."""

    def __init__(self, library: NativeLibrary, threads: int) -> None:
        """Start the threads. Raises NativeUnavailableError if the system cannot start that many."""
        self.handle = library.call.smoe_pool_create(threads)
        if not self.handle:
            raise NativeUnavailableError(f"cannot start {threads} threads")
        weakref.finalize(self, library.call.smoe_pool_destroy, self.handle)
