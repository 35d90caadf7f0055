"""Choose a backend, load the weights and measure what fits, once per engine process."""
