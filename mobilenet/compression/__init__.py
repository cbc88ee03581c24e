"""Compression methods behind one interface: pruning by masks, quantization by one scheme."""
