"""Benchmarks of kernels and whole steps, against the machine's limits measured in the same run. Run by `smoe bench`."""
