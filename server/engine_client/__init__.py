"""Run the engine process, restart it when it crashes, and route its outputs to requests."""
