"""A start that cannot succeed ends with one line that names what is wrong: no traceback, and never ready."""
