"""Packs: weights on disk as the native kernels read them from memory (docs/packs.md). Imports no torch."""
