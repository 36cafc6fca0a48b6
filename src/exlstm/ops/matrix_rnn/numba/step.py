"""One step of a recurrent net with a matrix memory, forward and backward, for a head of a row.

The matrix and Z lie in rows of V numbers, filled up to a multiple of 16.

B batch  T time  H heads  K key width  U, V value width  N spans
"""

from typing import Any, NamedTuple

import numpy as np
from numpy import float32

from exlstm.runtime.cpu.blocks import Units, simd16
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32
from exlstm.runtime.cpu.math import sigmoid
from exlstm.runtime.cpu.memory import SIZE, at, clear, copy, put
from exlstm.runtime.cpu.simd import SimdValue, tanh, where
from exlstm.runtime.cpu.tile import PANEL, product


class Sizes(NamedTuple):
    """Sizes of a scan; N is 0 if no backward will follow. gated, mixing: whether there is a gate, and R."""

    B: int
    T: int
    H: int
    K: int
    V: int
    U: int
    N: int
    gated: bool
    mixing: bool


class Inputs(NamedTuple):
    """Addresses of what both scans read, or of gradients of it."""

    q_BTHK: F32
    k_BTHK: F32
    v_BTHV: F32
    f_BTH: F32


@simd16
def update(
    z: Units,
    h: Units,
    v: Units,
    key: Units,
    query: Units,
    gate: Units,
    o: Units,
    gated: SimdValue,
) -> None:
    """16 values of a row of the matrix: z before the tanh becomes Z, h is updated, and its part is added to o.

    key, query: a number each. gate: f and 1 - f.
    """
    new = tanh(z[0] + key.number(0) * v[0])
    after = where(gated, gate.number(0) * h[0] + gate.number(1) * new, new)
    z[0], h[0] = new, after
    o[0] = o[0] + query.number(0) * after


@simd16
def update_backward(
    z: Units,
    h: Units,
    dh: Units,
    v: Units,
    dv: Units,
    do: Units,
    key: Units,
    query: Units,
    gate: Units,
    sums: Units,
    gated: SimdValue,
) -> None:
    """Gradients of 16 values of a row. h: before the step. z: Z, replaced by the gradient before its tanh.

    dh: of the matrix after the step, replaced by what the gate leads past. sums: those of q, k, f, not yet summed.
    """
    new, before = z[0], h[0]
    after = where(gated, gate.number(0) * before + gate.number(1) * new, new)
    d = dh[0] + query.number(0) * do[0]
    dz = where(gated, gate.number(1) * d, d) * (1.0 - new * new)
    sums[0] = sums[0] + after * do[0]
    sums[1] = sums[1] + dz * v[0]
    sums[2] = sums[2] + d * (before - new)
    dv[0] = dv[0] + key.number(0) * dz
    z[0], dh[0] = dz, where(gated, gate.number(0) * d, 0.0)


@helper()
def total(x: int) -> Any:
    """The sum of 16 numbers."""
    result = float32(0.0)
    for n in range(PANEL):
        result += at(x, n)
    return result


@helper()
def read_step(x: Inputs, sizes: Sizes, place: int, key: int, gate: int, v: int) -> None:
    """k / sqrt(K), f and 1 - f, and v of a head of a step. place: of it among all."""
    K, V, scale = sizes.K, sizes.V, float32(1.0 / np.sqrt(sizes.K))
    for n in range(K):
        put(key, n, scale * at(x.k_BTHK, place * K + n))
    if sizes.gated:
        put(gate, 0, sigmoid(at(x.f_BTH, place)))
        put(gate, 1, sigmoid(-at(x.f_BTH, place)))
    copy(v, x.v_BTHV + SIZE * place * V, V)


@helper()
def advance(x: Inputs, sizes: Sizes, place: int, h: int, z: int, panels: int, work: int) -> None:
    """One step of a head: h is updated, z becomes Z. work: [4, room]: k, v, f, and o, which is the output."""
    K, V, units = sizes.K, sizes.V, -(-sizes.V // PANEL)
    wide, room = units * PANEL, room_of(sizes)
    key, v, gate, o = work, work + SIZE * room, work + 2 * SIZE * room, work + 3 * SIZE * room
    read_step(x, sizes, place, key, gate, v)
    if sizes.mixing:
        product(z, wide, 4 * PANEL, h, wide, K, panels, V, units)
    else:
        copy(z, h, K * wide)
    clear(o, wide)
    for k in range(K):
        query = x.q_BTHK + SIZE * (place * K + k)
        for u in range(units):
            by = SIZE * u * PANEL
            here = SIZE * k * wide + by
            update(z + here, h + here, v + by, key + SIZE * k, query, gate, o + by, sizes.gated)


@helper()
def room_of(sizes: Sizes) -> int:
    """Numbers of a vector of keys or values, filled up."""
    return (max(sizes.K, sizes.V) + PANEL - 1) // PANEL * PANEL


@helper()
def retreat(x: Inputs, dx: Inputs, sizes: Sizes, place: int, h: int, z: int, dh: int, do: int, work: int) -> None:
    """The backward of one step of a head, but for its product with R. h: before the step.

    work: [6, room]: k, v, f, the gradients of o and v, and sums. z: Z becomes the gradient before its tanh.
    """
    K, V, units, room = sizes.K, sizes.V, -(-sizes.V // PANEL), room_of(sizes)
    wide, scale = units * PANEL, float32(1.0 / np.sqrt(sizes.K))
    key, v, gate, do_V = work, work + SIZE * room, work + 2 * SIZE * room, work + 3 * SIZE * room
    dv, sums = work + 4 * SIZE * room, work + 5 * SIZE * room
    read_step(x, sizes, place, key, gate, v)
    copy(do_V, do, V)
    clear(dv, wide)
    clear(sums, 3 * PANEL)
    for k in range(K):
        query = x.q_BTHK + SIZE * (place * K + k)
        clear(sums, 2 * PANEL)
        for u in range(units):
            by = SIZE * u * PANEL
            here = SIZE * k * wide + by
            update_backward(
                z + here,
                h + here,
                dh + here,
                v + by,
                dv + by,
                do_V + by,
                key + SIZE * k,
                query,
                gate,
                sums,
                sizes.gated,
            )
        put(dx.q_BTHK, place * K + k, total(sums))
        put(dx.k_BTHK, place * K + k, scale * total(sums + SIZE * PANEL))
    copy(dx.v_BTHV + SIZE * place * V, dv, V)
    if sizes.gated:
        put(dx.f_BTH, place, total(sums + 2 * SIZE * PANEL) * at(gate, 0) * at(gate, 1))


@helper()
def clear_step(dx: Inputs, sizes: Sizes, place: int) -> None:
    """Zeros as the gradients of a head of a step."""
    K, V = sizes.K, sizes.V
    clear(dx.q_BTHK + SIZE * place * K, K)
    clear(dx.k_BTHK + SIZE * place * K, K)
    clear(dx.v_BTHV + SIZE * place * V, V)
    if sizes.gated:
        put(dx.f_BTH, place, 0.0)
