"""Weights from other sources than TF1 checkpoints: keras.applications and TF2 checkpoints."""
