"""Changes of a model or file for a number format or a runtime."""
