"""Settings of the server as options of commands."""
