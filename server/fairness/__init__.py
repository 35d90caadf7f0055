"""Shares of the API process among tenants: turns of the event loop, and budgets of memory."""
