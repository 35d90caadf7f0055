"""Text, JSON and HTTP: the command line and the API process with its metrics and health. Never imports torch."""
