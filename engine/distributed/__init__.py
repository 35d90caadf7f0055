"""Several processes (ranks) compute one network together: rank 0 schedules and samples, the others follow it."""
