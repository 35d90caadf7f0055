"""The endpoints, one file each: from an HTTP request to what server.generation runs, and back."""
