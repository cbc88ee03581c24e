"""Damaged and hostile input for everything that the library reads."""
