"""The diagonal scan on a GPU, in Triton."""
