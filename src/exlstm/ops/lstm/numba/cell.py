"""The cell of the LSTM for 16 units, forward and backward, and the rows of scans whose gates are the LSTM's.

B batch  T time  H heads  V, K head width  G gates: i, f, g, o  E numbers saved
"""

from typing import NamedTuple

from torch import Tensor

from exlstm.runtime.cpu.blocks import Units, add_parts, simd16, store_parts, width
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32
from exlstm.runtime.cpu.launch import microseconds
from exlstm.runtime.cpu.memory import SIZE, copy
from exlstm.runtime.cpu.simd import sigmoid, tanh
from exlstm.runtime.cpu.tile import PANEL, tile_rows

GATES, SAVED = 4 * PANEL, 5 * PANEL  # numbers of 16 units: before their activations; saved of a step


class Sizes(NamedTuple):
    """Sizes of a scan. rows: of the batch, in an item."""

    rows: int
    B: int
    T: int
    H: int
    V: int
    K: int
    E: int


class State(NamedTuple):
    """Addresses of a state, or of its gradients."""

    h_BHV: F32
    c_BHV: F32


@simd16
def cell(raw: Units, c: Units, h: Units, saved: Units) -> None:
    """One step of 16 units: i, f, g, o before their activations, and c, to c and h; and what is saved."""
    i, f, g, o, before = sigmoid(raw[0]), sigmoid(raw[1]), tanh(raw[2]), sigmoid(raw[3]), c[0]
    for part, x in enumerate((i, f, g, o, before)):
        saved[part] = x
    c[0] = f * before + i * g
    h[0] = o * tanh(c[0])


@simd16
def cell_backward(draw: Units, dc: Units, dh: Units, saved: Units) -> None:
    """Gradients of i, f, g, o before their activations, and of c before the step, from those of c and h after it."""
    i, f, g, o, before = (saved[part] for part in range(5))
    seen, dh_now = tanh(f * before + i * g), dh[0]
    dc_now = dc[0] + dh_now * o * (1.0 - seen * seen)
    draw[0] = dc_now * g * i * (1.0 - i)
    draw[1] = dc_now * before * f * (1.0 - f)
    draw[2] = dc_now * i * (1.0 - g * g)
    draw[3] = dh_now * seen * o * (1.0 - o)
    dc[0] = dc_now * f


@helper()
def gates(raw: int, x: int, c: int, h: int, to: int, each: int, H: int, V: int) -> None:
    """One step of a row, of all units: products and inputs to c and h. to: what is saved, every `each` numbers."""
    for u in range(-(-V // PANEL)):
        raw_u, at_u = raw + SIZE * u * GATES, SIZE * u * PANEL
        add_parts(raw_u, 4, x + at_u, H * V, width(V, u))
        cell(raw_u, c + at_u, h + at_u, to + SIZE * u * each)


@helper()
def gates_backward(draw: int, dc: int, dh: int, saved: int, dx: int, H: int, V: int) -> None:
    """Gradients of a row's gates in one step, of all units, for the product with U and as those of the inputs."""
    for u in range(-(-V // PANEL)):
        draw_u, at_u = draw + SIZE * u * GATES, SIZE * u * PANEL
        cell_backward(draw_u, dc + at_u, dh + at_u, saved + SIZE * u * SAVED)
        store_parts(dx + at_u, H * V, draw_u, 4, width(V, u))


@helper()
def read_state(h: int, c: int, wide: int, state: State, first: int, count: int, H: int, V: int) -> None:
    """Rows of h and c of an item from a state. first: the first row's place in it, in heads."""
    for row in range(count):
        place, here = SIZE * (first + row * H) * V, SIZE * row * wide
        copy(h + here, state.h_BHV + place, V)
        copy(c + here, state.c_BHV + place, V)


@helper()
def write_state(state: State, h: int, c: int, wide: int, first: int, count: int, H: int, V: int) -> None:
    """Rows of h and c of an item to a state."""
    for row in range(count):
        place, here = SIZE * (first + row * H) * V, SIZE * row * wide
        copy(state.h_BHV + place, h + here, V)
        copy(state.c_BHV + place, c + here, V)


def sizes_of(x_BTGHV: Tensor, flops: int) -> tuple[Sizes, float]:
    """The sizes of a scan, and its cost. flops: of a unit in one step."""
    B, T, _, H, V = x_BTGHV.shape
    cost = microseconds(flops=B * T * H * V * flops)
    return Sizes(tile_rows(B, H, cost), B, T, H, V, V, B * T * H * -(-V // PANEL) * SAVED), cost


def items_of(sizes: Sizes) -> int:
    """Heads times tiles of rows."""
    return sizes.H * -(-sizes.B // sizes.rows)
