"""Decide what each step computes. Pure Python: no torch, no clock, no I/O."""
