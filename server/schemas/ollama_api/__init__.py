"""Request models of Ollama's API."""
