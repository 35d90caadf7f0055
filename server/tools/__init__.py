"""Tool calling: constraints on the output, parsing of calls, emulation in words."""
