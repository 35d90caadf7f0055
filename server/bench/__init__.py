"""`smoe bench`: load on a server, kernels and steps against the machine's limits. Nothing of it runs while serving."""
