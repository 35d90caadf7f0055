"""`smoe bench`."""
