"""Quantization: one scheme of two quantizers, under training and after it."""
