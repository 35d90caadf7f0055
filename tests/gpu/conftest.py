"""Tests that need a CUDA card: `pytest tests/gpu` where there is one. Elsewhere they are not collected."""

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*"]
