"""Capacity of an engine: KV cache sizes, memory budgets, host resources, and what a request may ask for. No torch."""
