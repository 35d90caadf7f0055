"""Metrics, health, logs and memory pressure."""
