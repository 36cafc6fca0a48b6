"""Kernels of the diagonal scans for CPUs."""
