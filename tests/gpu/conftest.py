"""Tests that need a CUDA GPU: `pytest tests/gpu`. Without one they are not collected."""

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*"]
