"""Compile grammars and match tokens against them. Imports no torch."""
