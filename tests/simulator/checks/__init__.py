"""Checks of every schedule, against the record of what happened."""
