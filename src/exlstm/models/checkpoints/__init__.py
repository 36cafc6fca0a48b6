"""Models on disk, in our own layout and in those of others."""
