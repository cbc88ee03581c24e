"""The TFLite file format, without TensorFlow."""
