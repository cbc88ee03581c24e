"""Pruning of whole channels, with the network surgery that takes them out."""
