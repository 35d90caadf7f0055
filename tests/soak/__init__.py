"""`python -m tests.soak`: good and bad clients for an hour, then a check for leaks."""
