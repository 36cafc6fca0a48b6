"""The discrete system of continuous parameters, by a kernel: a captured step then sees parameters that change.

Z states  P channels that poles are given for (E or 1)  R the same of c  Q the larger one
I planes to work in
"""

from typing import NamedTuple

from numpy import float32

from exlstm.ops.lti.reference import Discretization, LTIParameters, LTISystem
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import REORDER
from exlstm.runtime.cpu.math import cosine, exp, sine, tanh
from exlstm.runtime.cpu.memory import SIZE, at, copy, put

DISCRETIZE_FLOPS = 100  # of a state


class Poles(NamedTuple):
    """Parameters as the kernel reads them. log_dt: 0 for a step size of 1."""

    P: int
    Z: int
    R: int
    Q: int
    log_re_PZ: F32
    im_PZ: F32
    log_dt_P: F32
    c_re_RZ: F32
    c_im_RZ: F32


class System(NamedTuple):
    """`LTISystem` as the kernels read and write it."""

    P: int
    Z: int
    Q: int
    R: int
    a_re_PZ: F32
    a_im_PZ: F32
    c_re_QZ: F32
    c_im_QZ: F32
    skip_R: F32


@helper()
def hold_states(a: int, b: int, log_re: int, im: int, dt: float, Z: int) -> None:
    """The zero-order hold of one channel's poles; a and b: re, then im.

    e^x - 1 = tanh(x/2) (e^x + 1), and 1 - cos y = 2 sin^2(y/2), keep their digits where a step changes little.
    """
    half, one, two, step = float32(0.5), float32(1.0), float32(2.0), float32(dt)
    for z in range(Z):
        re, w = -exp(at(log_re, z)), at(im, z)
        x, y = re * step, half * w * step
        size, s, c = exp(x), sine(y), cosine(y)
        a_im = size * two * s * c
        cos_y = one - two * s * s
        less = tanh(half * x) * (size + one) * cos_y - two * s * s
        scale = one / (re * re + w * w)
        put(a, z, size * cos_y)
        put(a, Z + z, a_im)
        put(b, z, (less * re + a_im * w) * scale)
        put(b, Z + z, (a_im * re - less * w) * scale)


@helper()
def bilinear_states(a: int, b: int, log_re: int, im: int, dt: float, Z: int) -> None:
    """The bilinear form of one channel's poles; a and b: re, then im."""
    half, one, step = float32(0.5), float32(1.0), float32(dt)
    for z in range(Z):
        u, v = -half * exp(at(log_re, z)) * step, half * at(im, z) * step
        scale = one / ((one - u) * (one - u) + v * v)
        put(a, z, ((one + u) * (one - u) - v * v) * scale)
        put(a, Z + z, (v + v) * scale)
        put(b, z, (one - u) * scale * step)
        put(b, Z + z, v * scale * step)


@helper(REORDER)
def weighted(out: int, c_re: int, c_im: int, b_re: int, b_im: int, sign: float, Z: int) -> None:
    """out = c_re b_re + sign c_im b_im"""
    s = float32(sign)
    for z in range(Z):
        put(out, z, at(c_re, z) * at(b_re, z) + s * at(c_im, z) * at(b_im, z))


@kernel(I=4)
def discretize_channels(first: int, last: int, p: Poles, out: System, work_QIZ: F32, bilinear: bool) -> None:
    """Channels of the system, from the parameters. work: four numbers per state of every channel."""
    Z = p.Z
    for q in range(first, last):
        pole, row = (q if p.P > 1 else 0) * Z * SIZE, (q if p.R > 1 else 0) * Z * SIZE
        a = work_QIZ + 4 * q * Z * SIZE
        b = a + 2 * Z * SIZE
        dt = exp(at(p.log_dt_P, q if p.P > 1 else 0)) if p.log_dt_P != 0 else float32(1.0)
        if bilinear:
            bilinear_states(a, b, p.log_re_PZ + pole, p.im_PZ + pole, dt, Z)
        else:
            hold_states(a, b, p.log_re_PZ + pole, p.im_PZ + pole, dt, Z)
        if p.P > 1 or q == 0:
            copy(out.a_re_PZ + pole, a, Z)
            copy(out.a_im_PZ + pole, a + Z * SIZE, Z)
        here, c_re, c_im = q * Z * SIZE, p.c_re_RZ + row, p.c_im_RZ + row
        weighted(out.c_re_QZ + here, c_re, c_im, b, b + Z * SIZE, -1.0, Z)
        weighted(out.c_im_QZ + here, c_re, c_im, b + Z * SIZE, b, 1.0, Z)


def discretized_numba(p: LTIParameters, method: Discretization) -> LTISystem:
    """The numbers of `discretized`, in float32."""
    (P, Z), R = p.log_re_PZ.shape, len(p.c_re_RZ)
    Q, new = max(P, R), p.log_re_PZ.new_empty
    poles = Poles(P, Z, R, Q, *(t if t is None else t.contiguous() for t in p[:-1]))
    system = LTISystem(new(P, Z), new(P, Z), new(Q, Z), new(Q, Z), p.skip_R.contiguous())
    arguments = poles, System(P, Z, Q, R, *system), new(Q, 4, Z), method == "bilinear"
    launch(discretize_channels, Q, *arguments, cost=microseconds(flops=DISCRETIZE_FLOPS * Q * Z))
    return system
