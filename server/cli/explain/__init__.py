"""`smoe explain`: how the gates of a model route each token of a text, in its own numbers."""
