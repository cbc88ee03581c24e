"""What is read from, or done to, the graph of a Keras model."""
