"""Bounds of what connections may send and hold."""
