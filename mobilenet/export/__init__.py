"""From a Keras model to a verified flatbuffer: freeze, convert, verify, and the folder that
travels.
"""
