"""Inputs of linear attention with a decay per channel, as its kernels read them: rows of a span, padded, in planes.

B batch  T time  H heads  K key width  V value width  I either of them, where the decay is
"""

from typing import NamedTuple

from numpy import float32

from exlstm.ops.gated_linear_attention.numba.tiles import E_V, WIDTH, E, K, Q, V
from exlstm.runtime.cpu.bfloat16 import rounded, widened
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, F32Rows, Floats
from exlstm.runtime.cpu.loops import REORDER, Number
from exlstm.runtime.cpu.math import exp
from exlstm.runtime.cpu.memory import SIZE, at, byte_at, clear, copy, long_at, put, put_uint16, uint16_at


class Inputs(NamedTuple):
    """Inputs of forward and backward. g_row, g_step, g_head: strides in bytes. by_value: g is over the values."""

    B: int
    T: int
    H: int
    K: int
    V: int
    I: int  # noqa: E741
    q_BTHK: Floats
    k_BTHK: Floats
    v_BTHV: Floats
    g_BTHI: F32Rows
    g_row: int
    g_step: int
    g_head: int
    bonus_HK: F32
    reset_BT: Bools
    lengths_B: I64
    by_value: bool


class Planes(NamedTuple):
    """Addresses and strides in bytes of the planes of a span (`tiles`)."""

    keys: int
    k_step: int
    k_plane: int
    values: int
    v_step: int
    v_plane: int


class Span(NamedTuple):
    """Some steps of a head of a row. first, width: the value channels that are read."""

    row: int
    head: int
    begin: int
    steps: int
    first: int
    width: int


@helper()
def rounded_up(x: int, multiple: int) -> int:
    """The smallest multiple that is at least x."""
    return (x + multiple - 1) // multiple * multiple


@helper()
def vectors_of(V: int) -> int:
    """Vectors of a tile of the values, forward: 4, 2 or 1, so that few lanes are empty."""
    vectors = (V + WIDTH - 1) // WIDTH
    return 4 if vectors % 4 == 0 else 2 if vectors % 2 == 0 else 1


@helper()
def parts_of(K: int) -> int:
    """Vectors of a block of the keys, backward: 2 or 1."""
    return 2 if (K + WIDTH - 1) // WIDTH % 2 == 0 else 1


@helper()
def length_of(x: Inputs, row: int) -> int:
    """Steps of a row that are no padding."""
    return long_at(x.lengths_B + 8 * row) if x.lengths_B != 0 else x.T


@helper()
def is_reset(x: Inputs, row: int, t: int) -> bool:
    """Whether the row is reset before step t."""
    return bool(x.reset_BT != 0 and byte_at(x.reset_BT + row * x.T + t) != 0)


@helper()
def read_row(x: int, bf16: bool, out: int, count: int, width: int) -> None:
    """Numbers as float32, then zeros up to a width."""
    if bf16:
        for n in range(count):
            put(out, n, widened(uint16_at(x + 2 * n)))
    else:
        copy(out, x, count)
    if width > count:
        clear(out + SIZE * count, width - count)


@helper()
def write_row(x: int, out: int, bf16: bool, count: int) -> None:
    """Numbers to where they are kept."""
    if bf16:
        for n in range(count):
            put_uint16(out + 2 * n, rounded(at(x, n)))
    else:
        copy(out, x, count)


@helper()
def exponentials(x: int, count: int) -> None:
    """x becomes e^x."""
    for n in range(count):
        put(x, n, exp(at(x, n)))


@helper()
def read_values(x: int, bf16: bool, inputs: Inputs, span: Span, plane: int, p: Planes) -> None:
    """Rows of a tensor [B, T, H, V] to a plane."""
    size = 2 if bf16 else SIZE
    for t in range(span.steps):
        here = x + size * (((span.row * inputs.T + span.begin + t) * inputs.H + span.head) * inputs.V + span.first)
        out = p.values + plane * p.v_plane + t * p.v_step
        read_row(here, bf16, out, span.width, p.v_step // SIZE)


@helper()
def read_inputs(x: Inputs, bf16: bool, span: Span, p: Planes) -> None:
    """q, k, v and e^g to their planes."""
    size, width = 2 if bf16 else SIZE, p.k_step // SIZE
    read_values(x.v_BTHV, bf16, x, span, V, p)
    for t in range(span.steps):
        here, out = size * ((span.row * x.T + span.begin + t) * x.H + span.head) * x.K, p.keys + t * p.k_step
        read_row(x.q_BTHK + here, bf16, out + Q * p.k_plane, x.K, width)
        read_row(x.k_BTHK + here, bf16, out + K * p.k_plane, x.K, width)
        g = x.g_BTHI + span.row * x.g_row + (span.begin + t) * x.g_step + span.head * x.g_head
        if x.by_value:
            e = p.values + E_V * p.v_plane + t * p.v_step
            read_row(g + SIZE * span.first, False, e, span.width, p.v_step // SIZE)
            exponentials(e, p.v_step // SIZE)
        else:
            read_row(g, False, out + E * p.k_plane, x.K, width)
            exponentials(out + E * p.k_plane, width)


@helper(REORDER)
def triple_product(x: int, y: int, z: int, count: int) -> Number:
    """The sum of x y z."""
    total = float32(0.0)
    for n in range(count):
        total += at(x, n) * at(y, n) * at(z, n)
    return total


@helper()
def bonus_of(x: Inputs, span: Span, p: Planes, t: int) -> Number:
    """q . (u k) of a step."""
    here = p.keys + t * p.k_step
    return triple_product(here + Q * p.k_plane, here + K * p.k_plane, x.bonus_HK + SIZE * span.head * x.K, x.K)
