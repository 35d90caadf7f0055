"""Time and roundings of single kernels, on every instruction set."""
