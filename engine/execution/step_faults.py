"""What an exception in a step means: memory that was not to be had, something in the step's own data, or the end."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from engine.errors import FatalEngineError

OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "ALLOC_FAILED")  # as torch, CUDA and cuBLAS say it
DEVICE_LOST = ("CUDA error", "Triton Error [CUDA]", "cuDNN error")

Result = TypeVar("Result")


@dataclass(frozen=True)
class StepFault:
    """Text alone: an exception would keep alive, by its traceback, the tensors that the next attempt needs room for."""

    kind: Literal["memory", "other"]
    summary: str  # one line
    trace: str


def catch_fault(compute: Callable[[], Result]) -> Result | StepFault:
    """What `compute` returns, or what it raised. Raises FatalEngineError where no later step can be computed: an error
    of a CUDA device stays with the process."""
    try:
        return compute()
    except Exception as error:  # noqa: BLE001 (whoever gets the fault logs it, or tries again)
        return _fault_of(error)


def _fault_of(error: Exception) -> StepFault:
    text = str(error)
    summary = f"{type(error).__name__}: {text.partition(chr(10))[0]}"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in text for words in OUT_OF_MEMORY):
        return StepFault("memory", summary, "")
    if isinstance(error, torch.AcceleratorError) or any(words in text for words in DEVICE_LOST):
        raise FatalEngineError(f"the device is lost: {summary}") from error
    if isinstance(error, FatalEngineError):
        raise error
    return StepFault("other", summary, "".join(traceback.format_exception(error)))
