"""Kernels for CPUs: compiled by Numba, launched, captured and replayed. Import these pages only where a kernel runs."""
