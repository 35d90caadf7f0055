"""The server and its parts for tests: started as a user does or in this process, with or without a fake engine."""
