"""Post-training int8: steps that fit a trained net to the scheme, from images without labels."""
