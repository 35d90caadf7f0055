"""Benchmarks of kernels against the limits of the machine. Only `smoe bench` imports this package."""
