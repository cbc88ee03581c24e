"""Compression: every method is three verbs (`method.py`); pruning is masks, quantization is one scheme."""
