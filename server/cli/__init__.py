"""The command line: `smoe serve`, `plan`, `doctor`, `experts`, `chat`, `complete` and `bench`."""
