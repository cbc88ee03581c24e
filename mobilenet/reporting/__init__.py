"""Profiles, comparisons and plots of models and files, and their tables."""
