"""Inputs, oracles and guards for tests of the network's ops on every backend."""
