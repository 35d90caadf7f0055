"""Where a model's files are: a path, a name in Hugging Face's cache, LM Studio or Ollama, the bundled checkpoint."""
