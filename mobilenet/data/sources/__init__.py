"""Lists of images without TensorFlow: digits, class folders, CSV files."""
