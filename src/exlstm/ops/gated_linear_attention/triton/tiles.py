# mypy: ignore-errors
"""Tensors and blocks as the Triton kernels of linear attention with a decay per channel see them.

T, N and H are arguments of their own, because `do_not_specialize` does not reach into a tuple: one compiled form serves
all lengths and batches.

B batch  T time  H heads  N blocks or tiles of a row  M rows and heads, merged  K key width  V value width
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from exlstm.runtime.gpu.tiles import Steps

SIZES = ("T", "N", "H")
BLOCK = tl.constexpr(16)  # steps of a block, whose pairs have a decay each


class Gates(NamedTuple):
    """Logarithms of decays [T, K] of a row and head: address and stride; resets [T] of the row."""

    at: Any
    t: Any
    reset: Any


class Constants(NamedTuple):
    """What a kernel is compiled for, each a tl.constexpr: widths, in blocks of BK and BV.

    RESETS: whether there are resets. PRECISION: how float32 is multiplied.
    """

    K: Any
    V: Any
    BK: Any
    BV: Any
    RESETS: Any
    PRECISION: Any


@triton.jit
def steps_of(x, row, head):
    """The `Steps` of a row and head."""
    return Steps(x.at + row * x.b + head * x.h, x.t)


@triton.jit
def gates_of(g, reset, row, head, T):
    """The `Gates` of a row and head."""
    return Gates(g.at + row * g.b + head * g.h, g.t, reset + row * T)


@triton.jit
def load_steps(x, begin, T, first, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr):
    """A tile [TILE, COLUMNS] of `Steps`; zeros at and beyond T steps, and beyond the width."""
    step, column = begin + tl.arange(0, TILE), first + tl.arange(0, COLUMNS)
    there = (step < T)[:, None] & (column < WIDTH)[None, :]
    return tl.load(x.at + step[:, None] * x.t + column[None, :], mask=there, other=0.0)


@triton.jit
def load_step(x, t, T, first, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """One of `Steps`, in float32."""
    column = first + tl.arange(0, COLUMNS)
    return tl.load(x.at + t * x.t + column, mask=(column < WIDTH) & (t < T), other=0.0).to(tl.float32)


@triton.jit
def store_steps(x, value, begin, T, first, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr):
    """The inverse of `load_steps`."""
    step, column = begin + tl.arange(0, TILE), first + tl.arange(0, COLUMNS)
    there = (step < T)[:, None] & (column < WIDTH)[None, :]
    tl.store(x.at + step[:, None] * x.t + column[None, :], value.to(x.at.dtype.element_ty), mask=there)


@triton.jit
def load_gates(g, begin, end, first, const, TILE: tl.constexpr):
    """Logarithms of decays [TILE, BK] of steps from `begin` on: 0 at and beyond `end`, -inf at a reset."""
    step = begin + tl.arange(0, TILE)
    x = load_steps(Steps(g.at, g.t), begin, end, first, const.K, const.BK, TILE).to(tl.float32)
    if const.RESETS:
        x = tl.where((tl.load(g.reset + step, mask=step < end, other=0) != 0)[:, None], float("-inf"), x)
    return x


@triton.jit
def load_gate(g, t, T, first, const):
    """One step of `Gates`."""
    x = load_step(Steps(g.at, g.t), t, T, first, const.K, const.BK)
    if const.RESETS:
        x = tl.where(tl.load(g.reset + t, mask=t < T, other=0) != 0, float("-inf"), x)
    return x


@triton.jit
def resets_before(g, begin, T, TILE: tl.constexpr):
    """[TILE]: how many resets there were since `begin`, that of the step included."""
    step = begin + tl.arange(0, TILE)
    return tl.cumsum((tl.load(g.reset + step, mask=step < T, other=0) != 0).to(tl.int32), 0)


@triton.jit
def load_scores(a, begin):
    """The scores [target, source] of a block; a: [P, BLOCK] of a row and head."""
    step = tl.arange(0, BLOCK)
    return tl.load(a + (begin + step)[:, None] * BLOCK + step[None, :])
