"""The CUDA backend: Triton kernels and the code that launches them."""
