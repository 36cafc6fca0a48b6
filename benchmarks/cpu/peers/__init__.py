"""Implementations that a mixer is timed beside: models of transformers, and torch forms in the place of our ops."""
