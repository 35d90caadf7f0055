"""Response formats as grammars, checked before a request is accepted."""
