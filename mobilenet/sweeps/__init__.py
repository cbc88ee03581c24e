"""Many runs of the trainer in one folder, and the comparison of their settings."""
