"""Translate response formats to grammars and check them before a request is accepted."""
