"""`smoe plan`: memory use of a model, and the number of servers for a load."""
