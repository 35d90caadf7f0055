"""One generation from admission to its last token: jobs, choices, usage, accounting."""
