"""Call of smoe_sample: the struct smoe_sampling of model/native/smoe_native.h, filled from tensors, and the result."""

import ctypes
import weakref
from ctypes import c_int64, c_void_p
from typing import NamedTuple

import torch
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


class PreparedSampling(NamedTuple):
    """Arguments of a call, valid while logits and rows live, and where it writes the result."""

    logits: "weakref.ref[Tensor]"
    arguments: SamplingArguments
    result: SampledRows


def prepared_sampling(logits: Tensor, rows: SamplingRows) -> PreparedSampling:
    """Prepare a call for contiguous CPU tensors; only the history may be a slice of wider rows."""
    num_rows, count, masks = len(logits), max(0, rows.max_logprobs), rows.masks
    result = SampledRows(
        token_ids=torch.empty(num_rows, dtype=torch.int64),
        status=torch.empty(num_rows, dtype=torch.uint8),
        logprob=torch.zeros(num_rows),
        top_ids=torch.zeros(num_rows, count, dtype=torch.int32),
        top_logprobs=torch.zeros(num_rows, count),
    )
    arguments = SamplingArguments(
        *logits.shape,
        *(tensor.data_ptr() for tensor in (logits, rows.float_params, rows.int_params, rows.history)),
        rows.history.stride(0),
        *(tensor.data_ptr() for tensor in (rows.bias_ids, rows.bias_values)),
        None if masks is None else masks.data_ptr(),
        0 if masks is None else masks.shape[1],
        *(tensor.data_ptr() for tensor in (result.token_ids, result.status, result.logprob)),
        *(tensor.data_ptr() for tensor in (result.top_ids, result.top_logprobs)),
        count,
    )
    return PreparedSampling(weakref.ref(logits), arguments, result)
