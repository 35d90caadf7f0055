"""Read quantized checkpoints: AWQ, GPTQ, compressed-tensors, FP8, bitsandbytes, MLX. Imports no torch."""
