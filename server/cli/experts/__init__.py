"""`smoe experts`: what the experts of a model compute."""
