"""Pruning of whole channels, with the network surgery that removes them."""
