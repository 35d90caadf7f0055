"""Find a model's files: by a path, a name in Hugging Face's cache, LM Studio or Ollama, the bundled checkpoint."""
