"""Turn a conversation into a prompt: role repair, Mistral's format, Jinja templates."""
