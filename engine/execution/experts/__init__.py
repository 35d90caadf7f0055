"""The experts of a step: what requests ask of the gates, which ones they chose, and what was counted and read."""
