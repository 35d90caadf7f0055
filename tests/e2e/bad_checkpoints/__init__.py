"""Starts that cannot succeed: each ends with one line that names the fault, without a traceback or readiness."""
