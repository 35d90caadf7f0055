"""Sizes of the KV cache, memory budgets and what this host offers. Imports no torch."""
