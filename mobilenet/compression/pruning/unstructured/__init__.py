"""Pruning of single weights: magnitude, dynamic network surgery, tfmot's wrapper."""
