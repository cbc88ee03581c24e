"""Distillation: teachers, their inputs, feature maps and cached outputs."""
