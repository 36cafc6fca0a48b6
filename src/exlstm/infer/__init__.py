"""Floor 5c: sampling, generation, the engine, and decoding steps that are replayed."""
