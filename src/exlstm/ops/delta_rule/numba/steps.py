"""One step of either rule for a tile of the memory, forward and backward, inside Numba kernels.

B batch  T time  H heads  K key width  V value width  G 1 or K  J tiles of a head
"""

from typing import Any, NamedTuple

from numpy import float32

from exlstm.ops.delta_rule.numba.tiles import (
    COLUMNS,
    SIZE,
    collect,
    collect_two,
    read,
    scatter,
    scatter_two,
    write,
    write_silently,
    write_two,
    write_two_silently,
)
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, F32Rows
from exlstm.runtime.cpu.loops import REORDER, add_at, add_product_at
from exlstm.runtime.cpu.math import exp
from exlstm.runtime.cpu.memory import at, byte_at, copy, long_at, put


class Inputs(NamedTuple):
    """Inputs of forward and backward. The delta rule has beta, the general one a and b. v_*: strides of v in bytes."""

    B: int
    T: int
    H: int
    K: int
    V: int
    G: int
    J: int
    q_BTHK: F32
    k_BTHK: F32
    v_BTHV: F32Rows
    v_row: int
    v_step: int
    v_head: int
    beta_BTH: F32
    a_BTHK: F32
    b_BTHK: F32
    g_BTHG: F32
    s_BHKV: F32
    reset_BT: Bools
    lengths_B: I64


class Gradients(NamedTuple):
    """Gradients that the backward reads, and those that it adds to, or writes (dv and dfirst)."""

    do_BTHV: F32
    dlast_BHKV: F32
    dq_BTHK: F32
    dk_BTHK: F32
    dv_BTHV: F32
    dbeta_BTH: F32
    da_BTHK: F32
    db_BTHK: F32
    dg_BTHG: F32
    dfirst_BHKV: F32


class Tile(NamedTuple):
    """Where a tile is: its row, its head, its first column, how many columns it has, and the steps of the row."""

    row: int
    head: int
    column: int
    columns: int
    length: int


class Room(NamedTuple):
    """Memory of a kernel to work in: of K numbers w and a, of PARTS K parts, and the rest of COLUMNS.

    w: decays. a: what reads the memory. v, do: of a tile with fewer columns, 0 beyond them. u, d: of one step.
    """

    w: int
    a: int
    parts: int
    v: int
    do: int
    u: int
    d: int
    o: int


@helper()
def tile_at(x: Inputs, item: int) -> Tile:
    """Tile number `item` of all rows and heads."""
    merged, column = item // x.J, item % x.J * COLUMNS
    row, head = merged // x.H, merged % x.H
    length = long_at(x.lengths_B + 8 * row) if x.lengths_B != 0 else x.T
    return Tile(row, head, column, min(COLUMNS, x.V - column), length)


@helper()
def is_reset(x: Inputs, tile: Tile, t: int) -> bool:
    """Whether the row is reset before step t."""
    return bool(x.reset_BT != 0 and byte_at(x.reset_BT + tile.row * x.T + t) != 0)


@helper()
def decays(x: Inputs, n: int, w: int) -> None:
    """w = e^g. n: the number of the step and head."""
    if x.G == 1:
        decay = exp(at(x.g_BTHG, n)) if x.g_BTHG != 0 else float32(1.0)
        for k in range(x.K):
            put(w, k, decay)
    else:
        for k in range(x.K):
            put(w, k, exp(at(x.g_BTHG, n * x.G + k)))


@helper()
def reader(x: Inputs, n: int, room: Room) -> Any:
    """The address of a, what reads the memory before it decays, where w is there; of the delta rule a = w k."""
    if x.a_BTHK != 0:
        return x.a_BTHK + n * x.K * SIZE
    if x.g_BTHG == 0:
        return x.k_BTHK + n * x.K * SIZE
    for k in range(x.K):
        put(room.a, k, at(room.w, k) * at(x.k_BTHK, n * x.K + k))
    return room.a


@helper()
def values(x: Inputs, tile: Tile, t: int, room: Room) -> Any:
    """The address of the tile's COLUMNS values at step t."""
    v = x.v_BTHV + tile.row * x.v_row + t * x.v_step + tile.head * x.v_head + tile.column * SIZE
    if tile.columns == COLUMNS:
        return v
    copy(room.v, v, tile.columns)
    return room.v


@helper()
def difference(v: int, z: int) -> None:
    """z = v - z"""
    for j in range(COLUMNS):
        put(z, j, at(v, j) - at(z, j))


@helper()
def scaled(x: int, factor: float32, out: int) -> None:
    """out = factor x"""
    for j in range(COLUMNS):
        put(out, j, factor * at(x, j))


@helper(REORDER)
def product(x: int, y: int) -> float32:
    """x . y"""
    total = float32(0.0)
    for j in range(COLUMNS):
        total += at(x, j) * at(y, j)
    return total


@helper()
def advance(
    x: Inputs, tile: Tile, t: int, source: int, step: int, target: int, found: int, room: Room, out: int
) -> None:
    """target: the memory after step t, from source, the one before; step: bytes between source's rows.

    found: becomes v - S~^T k of the delta rule, S^T a of the general one. out: becomes o, if it is not 0.
    """
    n = (tile.row * x.T + t) * x.H + tile.head
    decays(x, n, room.w)
    K, w, a, v = x.K, room.w, reader(x, n, room), values(x, tile, t, room)
    q, key = x.q_BTHK + n * K * SIZE, x.k_BTHK + n * K * SIZE
    read(K, a, source, step, found)
    if x.a_BTHK != 0:
        b = x.b_BTHK + n * K * SIZE
        if out != 0:
            write_two(K, w, key, v, b, found, q, source, step, target, out)
        else:
            write_two_silently(K, w, key, v, b, found, q, source, step, target, out)
        return
    difference(v, found)
    scaled(found, at(x.beta_BTH, n), room.u)
    if out != 0:
        write(K, w, key, room.u, 0, 0, q, source, step, target, out)
    else:
        write_silently(K, w, key, room.u, 0, 0, q, source, step, target, out)


@helper(REORDER)
def decay_gradient(w: int, dw: int, K: int) -> float32:
    """w . dw"""
    total = float32(0.0)
    for k in range(K):
        total += at(w, k) * at(dw, k)
    return total


@helper()
def add_decays(x: Inputs, g: Gradients, n: int, room: Room, dw: int) -> None:
    """dg += w dw, of an address dw."""
    if x.G > 1:
        add_product_at(g.dg_BTHG + n * x.G * SIZE, room.w, dw, x.K)
    elif g.dg_BTHG != 0:
        put(g.dg_BTHG, n, at(g.dg_BTHG, n) + decay_gradient(room.w, dw, x.K))


@helper()
def retreat(
    x: Inputs, g: Gradients, tile: Tile, t: int, before: int, after: int, ds: int, found: int, room: Room
) -> None:
    """Gradients of step t; ds, that of the memory after it, becomes that of the one before.

    found: as `advance` left it.
    """
    n = (tile.row * x.T + t) * x.H + tile.head
    decays(x, n, room.w)
    K, w, a = x.K, room.w, reader(x, n, room)
    place = n * K * SIZE
    q, key, do = x.q_BTHK + place, x.k_BTHK + place, g.do_BTHV + (n * x.V + tile.column) * SIZE
    dv = g.dv_BTHV + (n * x.V + tile.column) * SIZE
    if tile.columns < COLUMNS:
        copy(room.do, do, tile.columns)
        do = room.do
    each, dq = K * SIZE, room.parts
    dk, da, dw, db = dq + each, dq + 2 * each, dq + 3 * each, dq + 4 * each
    if x.a_BTHK != 0:
        b = x.b_BTHK + place
        collect_two(K, q, key, b, do, ds, room.u, room.d)
        copy(dv, room.u, tile.columns)
        scatter_two(K, w, a, do, values(x, tile, t, room), found, room.d, after, before, ds, dq)
        add_at(g.dq_BTHK + place, dq, K)
        add_at(g.dk_BTHK + place, dk, K)
        add_at(g.da_BTHK + place, da, K)
        add_at(g.db_BTHK + place, db, K)
        add_decays(x, g, n, room, dw)
        return
    beta = at(x.beta_BTH, n)
    collect(K, q, key, 0, do, ds, room.d, 0)
    put(g.dbeta_BTH, n, at(g.dbeta_BTH, n) + product(room.d, found))
    scaled(room.d, beta, room.d)
    copy(dv, room.d, tile.columns)
    scaled(room.d, float32(-1.0), room.d)
    scaled(found, beta, room.u)
    scatter(K, w, a, do, room.u, 0, room.d, after, before, ds, dq)
    add_product_at(dk, w, da, K)  # what reads the memory is w k
    add_product_at(dw, key, da, K)
    add_at(g.dq_BTHK + place, dq, K)
    add_at(g.dk_BTHK + place, dk, K)
    add_decays(x, g, n, room, dw)
