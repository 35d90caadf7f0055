"""Replace the running server by a new process on SIGHUP, without dropping a connection."""
