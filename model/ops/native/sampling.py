"""Arguments of smoe_sample: the struct smoe_sampling of model/native/smoe_native.h, filled from tensors."""

import ctypes
from ctypes import c_int64, c_void_p

from torch import Tensor

from model.sampling_batch import SampledRows, SamplingRows


class SamplingArguments(ctypes.Structure):
    """The struct smoe_sampling. It holds addresses: the tensors must outlive the call."""

    _fields_ = [
        ("N", c_int64),
        ("V", c_int64),
        *((name, c_void_p) for name in ("logits", "float_params", "int_params", "history")),
        ("history_len", c_int64),
        *((name, c_void_p) for name in ("bias_ids", "bias_values", "masks")),
        ("mask_words", c_int64),
        *((name, c_void_p) for name in ("token_ids", "status", "logprob", "top_ids", "top_logprobs")),
        ("max_logprobs", c_int64),
    ]


def sampling_arguments(logits: Tensor, rows: SamplingRows, result: SampledRows) -> SamplingArguments:
    """Fill the struct from contiguous CPU tensors; only the history may be a slice of wider rows."""
    masks = rows.masks
    return SamplingArguments(
        *logits.shape,
        *(tensor.data_ptr() for tensor in (logits, rows.float_params, rows.int_params, rows.history)),
        rows.history.stride(0),
        *(tensor.data_ptr() for tensor in (rows.bias_ids, rows.bias_values)),
        None if masks is None else masks.data_ptr(),
        0 if masks is None else masks.shape[1],
        *(tensor.data_ptr() for tensor in (result.token_ids, result.status, result.logprob)),
        *(tensor.data_ptr() for tensor in (result.top_ids, result.top_logprobs)),
        result.top_ids.shape[1],
    )
