"""Floor 1: thin parameter holders: norms, linears, gated MLPs, initialisers."""
