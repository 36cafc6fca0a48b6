"""Floor 2: modules that hold parameters and call one op each: norms, linears, gated MLPs; their initial values."""
