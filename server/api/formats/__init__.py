"""Reply formats: how each API writes a reply, in full and as a stream."""
