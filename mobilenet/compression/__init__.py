"""Compression: every method is three verbs; pruning is masks, quantization is one scheme."""
