"""Pruning: one mask mechanism, and one method for each rule that chooses what is removed."""
