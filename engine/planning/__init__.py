"""Compute how many engines a load needs, by the product's own scheduler in virtual time and measured times of steps."""
