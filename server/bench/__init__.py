"""Measurements of `smoe bench`: load on a server, the front end alone, kernels, and steps. Not used while serving."""
