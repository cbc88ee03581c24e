"""Few values a kernel: codebooks, uniform grids, clustering."""
