"""Text, JSON and HTTP: the command line, the API process, its metrics and its health. Never imports torch."""
