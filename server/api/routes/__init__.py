"""The endpoints, one file each: from an HTTP request to what server.generation runs, and back."""

READ = ["GET", "HEAD"]  # methods of what is only read; a HEAD gets the same headers and no body
