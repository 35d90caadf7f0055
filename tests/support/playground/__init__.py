"""Chromium, a server that answers at once, and the states of the page."""
