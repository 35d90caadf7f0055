"""What commands share that ask a running server: requests, errors, streamed answers."""
