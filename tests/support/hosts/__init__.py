"""Ranks, hosts and what stands in front of several servers."""
