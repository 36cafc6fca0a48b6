"""Floor 3: models as tuples of blocks, presets, and how they are saved."""
