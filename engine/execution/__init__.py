"""Run a step plan: build tensors, run the model, sample, copy results back."""
