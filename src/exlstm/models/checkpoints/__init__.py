"""Checkpoints: models on disk, in our own layout and in those of other packages."""
