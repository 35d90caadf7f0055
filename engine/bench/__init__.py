"""Kernels and whole steps against the machine's limits, measured in the same run. Only `smoe bench` runs it."""
