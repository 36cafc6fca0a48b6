"""Floor 4: language models as tuples of blocks, presets, checkpoints, and snapshots of what a model has read."""
