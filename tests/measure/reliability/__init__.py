"""Attacks, kills, overload and small memory: what the server keeps while they last."""
