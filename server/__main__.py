"""`python -m server` is `smoe`."""

from server.cli.main import main

main()
