"""Checkpoints, packs, adapters and tokenizers for tests, in every format."""
