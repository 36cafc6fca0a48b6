"""Floor 4c: sampling and generation."""
