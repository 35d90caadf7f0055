"""Settings of the server: their fields, the sources that fill them, and their mapping to the engine."""
