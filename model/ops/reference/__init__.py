"""The definition of every op in plain torch; the oracle of the other backends."""
