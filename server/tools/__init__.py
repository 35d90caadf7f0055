"""Tool calling: constraints on the answer, parsing of calls, emulation by prompt."""
