"""Structs of model/native/smoe_native.h that describe a network and one step, field by field.

They hold addresses: the tensors must outlive the calls.
"""

import ctypes
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p


class LayerArguments(ctypes.Structure):
    """The struct smoe_layer."""

    _fields_ = [
        (name, c_void_p)
        for name in ("attention_norm", "qkv", "output", "ffn_norm", "gate", "w13", "w2", "k_cache", "v_cache")
    ]


class NetworkArguments(ctypes.Structure):
    """The struct smoe_network."""

    _fields_ = [
        *((name, c_int) for name in ("dtype", "format", "kv_dtype")),
        ("eps", c_float),
        *((name, c_int64) for name in ("V", "D", "F", "E", "H", "G", "K", "L", "block_size", "window")),
        *((name, c_void_p) for name in ("embedding", "norm", "head", "inverse_frequency")),
        ("layers", POINTER(LayerArguments)),
    ]


class StepArguments(ctypes.Structure):
    """The struct smoe_step."""

    _fields_ = [
        *((name, c_int64) for name in ("T", "S", "M", "N", "max_k")),
        *((name, c_void_p) for name in ("token_ids", "positions", "slots", "logit_rows")),
        *((name, c_void_p) for name in ("query_start", "context_len", "block_tables")),
        *((name, c_void_p) for name in ("experts_per_token", "allowed", "expert_ids", "finite", "logits")),
    ]
