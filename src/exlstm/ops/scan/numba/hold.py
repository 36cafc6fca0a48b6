"""`held_input` in a captured step: the formulas of `ops.scan.hold` in float64.

P poles
"""

from math import cos, exp, expm1, sin

import torch
from numpy import float32, float64
from torch import Tensor

from exlstm.runtime.cpu.kernel import F32, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.memory import at, put

POLES = 32  # of an item


@kernel()
def hold_items(
    first: int, last: int, P: int, a_P: F32, b_P: F32, d_P: F32, r_P: F32, theta_P: F32, re_P: F32, im_P: F32
) -> None:
    """Items of the factors."""
    for item in range(first, last):
        for n in range(item * POLES, min((item + 1) * POLES, P)):
            rate, turn, dt = exp(float64(at(a_P, n))), float64(at(b_P, n)), exp(float64(at(d_P, n)))
            x, theta = -rate * dt, turn * dt
            r, half = exp(x), sin(0.5 * theta)
            less_re, less_im = expm1(x) * cos(theta) - 2.0 * half * half, r * sin(theta)
            square = rate * rate + turn * turn
            put(r_P, n, float32(r))
            put(theta_P, n, float32(theta))
            put(re_P, n, float32((less_im * turn - less_re * rate) / square))
            put(im_P, n, float32(-(less_im * rate + less_re * turn) / square))


def held_input_numba(a_P: Tensor, b_P: Tensor, d_P: Tensor) -> list[Tensor]:
    """The numbers of `held_input_torch`, without a graph."""
    P, found = a_P.shape[0], [torch.empty_like(a_P) for _ in range(4)]
    inputs = (x.contiguous() for x in (a_P, b_P, d_P))
    launch(hold_items, -(-P // POLES), P, *inputs, *found, cost=microseconds(flops=3000 * P))
    return found
