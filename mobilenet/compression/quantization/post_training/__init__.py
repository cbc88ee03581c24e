"""Post-training int8: steps that fit a trained model to the scheme, from images without labels."""
