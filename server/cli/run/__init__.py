"""`smoe run`: a server of its own, and a chat with it."""
