"""What a person reads of a net, a file or a run."""
