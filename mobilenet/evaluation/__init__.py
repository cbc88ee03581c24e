"""Accuracy of models and files."""
