"""Speed, quality and loading of GGUF files beside llama.cpp, and the files for it."""
