"""Several ranks, hosts and servers: what links and proxies cost, and what a plan predicts."""
