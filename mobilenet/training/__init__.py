"""Training: one engine for every stage, and the chain of stages in one run folder."""
