"""Training: one engine for every stage, and the pipeline of stages in one run folder."""
