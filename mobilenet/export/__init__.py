"""From a Keras net to a proved flatbuffer: freeze, convert, verify, and the folder that travels."""
