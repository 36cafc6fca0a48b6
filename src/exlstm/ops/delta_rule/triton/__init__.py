"""The delta rule on a GPU, in Triton."""
