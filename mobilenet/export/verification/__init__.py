"""Comparison of a file with its model: structure, operators, outputs."""
