"""Helpers that several tests share: checkpoints, fakes, oracles, running servers."""
