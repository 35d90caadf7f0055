"""Coding agents against a real server: `make test-agents`. Not part of `make test`: the programs are large."""
