"""Linear attention with a decay per channel on a GPU, in Triton."""
