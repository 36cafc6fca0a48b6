"""Threads for kernels, and bfloat16 in Triton's interpreter, which keeps it as its 16 bits.

It cuts numbers off instead of rounding them, and its products are of the bits.
"""

import numpy as np
import pytest
import torch
from triton_cases import DEVICE


@pytest.fixture
def threads(monkeypatch):
    """A function that sets the number of torch's threads; every launch of a kernel is then worth them."""
    monkeypatch.setattr("exlstm.runtime.cpu.launch.THREAD_US", 1e-6)
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def widened(bits):
    """The numbers of bfloat16's bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(numbers):
    """The bits of float32 numbers as bfloat16, rounded to the nearest, to even where there are two."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


@pytest.fixture
def bfloat16_as_on_a_gpu(monkeypatch):
    """Both as a GPU does them; does nothing where there is one."""
    if DEVICE == "cuda":
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def cast_impl(self, x, to):
        if x.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            return TensorHandle(rounded(x.data), tl.bfloat16)
        return cast(self, x, to)

    def create_dot(self, a, b, c, *more):
        a, b = (TensorHandle(widened(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, c, *more)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    for name in ("create_fp_trunc", "create_fp_ext"):
        monkeypatch.setattr(InterpreterBuilder, name, lambda self, x, to: self.cast_impl(x, to))
