"""Packs, the expert store and adapters."""
