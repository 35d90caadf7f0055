"""`python -m server` is `smoe`."""

from server.cli import main

main()
