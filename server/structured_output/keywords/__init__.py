"""Schema keywords that llguidance lacks, written in those that it has."""
