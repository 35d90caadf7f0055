"""Start, run and stop the server process."""
