# mypy: ignore-errors
"""Tensors and tiles as the mLSTM's Triton kernels see them: arguments in groups, blocks loaded and stored.

Groups are named tuples, which Triton takes as arguments: tensors become addresses, tl.constexpr stays a constant.
T, N, G and H are arguments of their own, because `do_not_specialize` does not reach into a tuple: one compiled form
serves all lengths and batches, and a size of 1 is a number like any other.

B batch  T time  H heads  G tiles of all sequences  N tiles of a sequence  K key width  V value width
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from exlstm.runtime.gpu.tiles import Steps

SIZES = ("T", "N", "G", "H")


class Memory(NamedTuple):
    """C [..., K, V] and n [..., K], or their gradients, contiguous."""

    c: Any
    n: Any


class Gates(NamedTuple):
    """Planes of the gates (`gates.py`): address, and distance from one plane to the next."""

    at: Any
    plane: Any


class Sequences(NamedTuple):
    """Pieces of a packed row; read only if the batch is packed.

    borders: where each begins and the last ends [S + 1], firsts: their first tiles [S + 1], owners: each tile's piece.
    """

    borders: Any
    firsts: Any
    owners: Any


class Constants(NamedTuple):
    """What a kernel is compiled for, each a tl.constexpr.

    TILE: steps of a tile. K, V: widths, in blocks of BK and BV. PACKED: whether the batch is one packed row.
    PRECISION: how float32 is multiplied.
    """

    TILE: Any
    K: Any
    V: Any
    BK: Any
    BV: Any
    PACKED: Any
    PRECISION: Any


class Tile(NamedTuple):
    """A tile's sequence, the sequence's tiles from first to end; the tile's row, first step there, and steps left."""

    sequence: Any
    first: Any
    end: Any
    row: Any
    begin: Any
    left: Any


@triton.jit
def sequence_at(number, sequences, T, N, PACKED: tl.constexpr):
    """Row of a sequence, its first step there, its number of steps, its first tile and its number of tiles."""
    row, begin, length, first, tiles = number, number * 0, T, number * N, N
    if PACKED:
        row, begin = number * 0, tl.load(sequences.borders + number).to(tl.int64)
        length = tl.load(sequences.borders + number + 1) - begin
        first = tl.load(sequences.firsts + number).to(tl.int64)
        tiles = tl.load(sequences.firsts + number + 1) - first
    return row, begin, length, first, tiles


@triton.jit
def tile_at(tile, sequences, T, N, TILE: tl.constexpr, PACKED: tl.constexpr):
    """The `Tile` of this number; a tile at or beyond its `end` belongs to no sequence."""
    number = tile // N if not PACKED else tl.load(sequences.owners + tile).to(tl.int64)
    row, begin, length, first, tiles = sequence_at(number, sequences, T, N, PACKED)
    done = (tile - first) * TILE
    return Tile(number, first, first + tiles, row, begin + done, length - done)


@triton.jit
def steps_at(x, row, begin, head):
    """The `Steps` of a row and head from step `begin` on."""
    return Steps(x.at + row * x.b + begin * x.t + head.to(tl.int64) * x.h, x.t)


@triton.jit
def moved(x, steps):
    """`Steps` so many steps further."""
    return Steps(x.at + x.t * steps, x.t)


@triton.jit
def load_steps(x, left, first, TILE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A tile [TILE, BLOCK] of `Steps`, columns from `first` on; zeros beyond `left` steps and beyond the width."""
    step, column = tl.arange(0, TILE), first + tl.arange(0, BLOCK)
    there = (step < left)[:, None]
    if WIDTH % BLOCK:
        there = there & (column < WIDTH)[None, :]
    return tl.load(x.at + step[:, None] * x.t + column[None, :], mask=there, other=0.0)


@triton.jit
def store_steps(x, value, left, first, TILE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The inverse of `load_steps`."""
    step, column = tl.arange(0, TILE), first + tl.arange(0, BLOCK)
    there = (step < left)[:, None] & (column < WIDTH)[None, :]
    tl.store(x.at + step[:, None] * x.t + column[None, :], value.to(x.at.dtype.element_ty), mask=there)


@triton.jit
def load_vector(x, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A block of a vector, zeros beyond its end."""
    column = first + tl.arange(0, BLOCK)
    return tl.load(x + column, mask=column < WIDTH, other=0.0)
