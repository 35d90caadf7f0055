"""Packs: a network's packed weights written to a file, and used from there without being packed again."""
