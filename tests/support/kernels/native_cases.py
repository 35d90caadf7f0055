"""Shared by tests of the native backend: instruction sets of this machine."""

from functools import cache

import torch

from model.kv_format import KvDtype
from model.kv_pool import DTYPES as KV_DTYPES
from model.ops.native.library import NativeLibrary
from model.ops.native.ops import NativeOps
from model.ops.quantization import Quantization

LIBRARY = NativeLibrary()
ISAS = LIBRARY.isas()  # all that this machine supports are tested
DTYPES = [torch.float32, torch.bfloat16]


def name_of(dtype: torch.dtype) -> KvDtype:
    """Return the name of a dtype in model/kv_format.py."""
    return next(name for name, named in KV_DTYPES.items() if named == dtype)


@cache
def native(isa: str, threads: int = 1, quantization: Quantization = "none") -> NativeOps:
    return NativeOps(LIBRARY, threads, isa, quantization)
