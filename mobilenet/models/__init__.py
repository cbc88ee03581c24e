"""All models: built from configs, saved with their cards, counted, and read as graphs."""
