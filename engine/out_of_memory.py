"""Recognize failed allocations. Imports no torch."""

TEXTS = ("out of memory", "DefaultCPUAllocator", "ALLOC_FAILED")  # of torch, CUDA and cuBLAS


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed. torch has no exception of its own for memory of the CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's for GPUs
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in TEXTS)
