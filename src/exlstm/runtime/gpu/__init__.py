"""What kernels for GPUs share."""
