"""Read GGUF, the file format of llama.cpp: header, config, tensors, vocabulary. Imports no torch."""
