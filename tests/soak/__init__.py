"""`python -m tests.soak`: an hour of everything at once, and what it left behind."""
