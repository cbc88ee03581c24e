"""A model in one small file and back, bit by bit."""
