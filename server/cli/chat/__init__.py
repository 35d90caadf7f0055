"""`smoe chat`: a conversation in the terminal."""
