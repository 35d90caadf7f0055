"""Fuzzers of everything that parses what others have written, and of the C interface, over a corpus that is kept."""
