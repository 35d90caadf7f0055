"""Run a step plan: tensors in, model forward, sampling, results back. Imports torch, as startup/ does."""
