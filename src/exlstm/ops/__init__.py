"""Floor 1: the mathematics, as pure functions on tensors."""
