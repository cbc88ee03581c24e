"""What a person reads of a model, a file or a run."""
