"""GPUs: their limits, kernels as operators of torch, elementary functions for kernels."""
