"""Run a step plan: tensors in, model forward, sampling, results back.

The only engine folder beside startup/ that imports torch.
"""
