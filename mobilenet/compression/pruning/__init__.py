"""Pruning: one mask mechanism, and a rule for each way to choose what goes."""
