"""Structs of model/native/smoe_native.h that describe a network and one step, field by field.

They hold addresses: the tensors must outlive the calls.
"""

import ctypes
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p


class MatrixArguments(ctypes.Structure):
    """The struct smoe_matrix."""

    _fields_ = [
        ("panels", c_void_p),
        *((name, c_int64) for name in ("outputs", "stride", "format")),
        ("order", c_void_p),
    ]


class ExpertArguments(ctypes.Structure):
    """The struct smoe_expert."""

    _fields_ = [(name, MatrixArguments) for name in ("w1", "w3", "w2")]


class LowRankArguments(ctypes.Structure):
    """The struct smoe_low_rank."""

    _fields_ = [
        *((name, c_void_p) for name in ("a", "b")),
        *((name, c_int64) for name in ("rank", "dtype", "first_output", "outputs")),
        ("scale", c_float),
    ]


class LayerArguments(ctypes.Structure):
    """The struct smoe_layer."""

    _fields_ = [
        *((name, c_void_p) for name in ("attention_norm", "ffn_norm")),
        *((name, POINTER(MatrixArguments)) for name in ("qkv", "output")),
        ("num_qkv", c_int64),
        ("gate", c_void_p),
        ("experts", POINTER(ExpertArguments)),
        ("store", c_void_p),
        ("stored_layer", c_int64),
        *((name, c_void_p) for name in ("k_cache", "v_cache")),
    ]


class NetworkArguments(ctypes.Structure):
    """The struct smoe_network."""

    _fields_ = [
        *((name, c_int) for name in ("embedding_dtype", "query_dtype", "residual_dtype", "kv_dtype")),
        *((name, c_float) for name in ("eps", "rope_factor")),
        *((name, c_int64) for name in ("V", "D", "F", "E", "H", "G", "K", "L", "block_size", "window")),
        *((name, c_int64) for name in ("all_H", "first_H", "first_V", "first_D", "first_F")),
        ("group", c_void_p),
        *((name, c_void_p) for name in ("embedding", "norm")),
        ("head", POINTER(MatrixArguments)),
        ("inverse_frequency", c_void_p),
        ("layers", POINTER(LayerArguments)),
    ]


class SocketArguments(ctypes.Structure):
    """The struct smoe_sockets."""

    _fields_ = [
        ("sockets", POINTER(c_int)),
        *((name, c_int) for name in ("rank", "size", "timeout_ms", "lost_rank", "is_late")),
    ]


class StepArguments(ctypes.Structure):
    """The struct smoe_step."""

    _fields_ = [
        *((name, c_int64) for name in ("T", "S", "M", "N", "max_k")),
        *((name, c_void_p) for name in ("token_ids", "positions", "slots", "logit_rows")),
        *((name, c_void_p) for name in ("query_start", "context_len", "block_tables")),
        *((name, c_void_p) for name in ("experts_per_token", "allowed", "expert_ids", "finite", "logits")),
        ("P", c_int64),
        *((name, c_void_p) for name in ("gate_rows", "gate_logits", "adapters")),
    ]


class StoreLayout(ctypes.Structure):
    """The struct smoe_store_layout."""

    _fields_ = [
        *((name, c_int64) for name in ("layers", "experts", "slots", "slot_bytes", "readers")),
        *((name, c_void_p) for name in ("positions", "expert_bytes", "memory", "mapped", "read", "drop", "context")),
    ]


class StoreCounts(ctypes.Structure):
    """The struct smoe_store_counts."""

    _fields_ = [(name, c_int64) for name in ("hits", "misses", "read_bytes", "waited_ns", "foreseen", "unneeded_bytes")]
