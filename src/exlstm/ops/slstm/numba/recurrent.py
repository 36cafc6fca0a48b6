"""R of a head as the scans read it: packed in panels, or in place; in float32 or bfloat16.

Tensors are addresses; *_at count numbers. V head width  K, J rows and columns of R: V, and 4 V for all gates
U groups of 16 units  G gates
"""

from typing import NamedTuple

from exlstm.ops.slstm.numba.gates import BLOCK, eight_rows, eight_rows_bf16, one_row, one_row_bf16
from exlstm.runtime.cpu.bfloat16 import read_number
from exlstm.runtime.cpu.blocks import width
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import Strided
from exlstm.runtime.cpu.matmul import transpose
from exlstm.runtime.cpu.memory import SIZE, at, clear, copy, put, rows_at
from exlstm.runtime.cpu.tile import PANEL


class Recurrent(NamedTuple):
    """R, and numbers from a head to the next, from a row (an input), from a gate and from a column (a unit)."""

    r_HKGV: Strided
    head: int
    row: int
    gate: int
    unit: int


class Groups(NamedTuple):
    """Groups of 16 units that a thread computes: from `begin` to the one before `end`, of `all` of a head."""

    begin: int
    end: int
    all: int


@helper()
def pack(r: Recurrent, head: int, bf16: bool, V: int, own: Groups, panels: int) -> None:
    """R of a head in panels [U, G, V, 16], for h R: the four gates of 16 units are neighbours. Beyond V are zeros."""
    size = 2 if bf16 else SIZE
    r_KJ = r.r_HKGV + size * head * r.head
    clear(panels, (own.end - own.begin) * 4 * V * PANEL)
    for u in range(own.begin, own.end):
        count = width(V, u)
        for g in range(4):
            panel = panels + SIZE * ((u - own.begin) * 4 + g) * V * PANEL
            here = r_KJ + size * (g * r.gate + u * PANEL * r.unit)
            if r.row == 1 and not bf16:
                transpose(rows_at(panel, V, count, PANEL), rows_at(here, count, V, r.unit))
                continue
            for k in range(V):
                for v in range(count):
                    put(panel, k * PANEL + v, read_number(here + size * (k * r.row + v * r.unit), bf16))


@helper()
def pack_transposed(r: Recurrent, head: int, V: int, own: Groups, panels: int) -> None:
    """R^T of a head in panels [U, U, G, 16, 16], its rows in the order of the blocks, for d(gates) R^T."""
    clear(panels, (own.end - own.begin) * own.all * 4 * PANEL * PANEL)
    for group in range(own.begin, own.end):
        columns = width(V, group)
        for u in range(own.all):
            for g in range(4):
                panel = panels + SIZE * (((group - own.begin) * own.all + u) * 4 + g) * PANEL * PANEL
                here = r.r_HKGV + SIZE * (head * r.head + group * PANEL * r.row + g * r.gate + u * PANEL * r.unit)
                if r.row == 1:
                    for v in range(width(V, u)):
                        copy(panel + SIZE * v * PANEL, here + SIZE * v * r.unit, columns)
                else:
                    for k in range(columns):
                        for v in range(width(V, u)):
                            put(panel, v * PANEL + k, at(here, k * r.row + v * r.unit))


@helper()
def read_product(block: int, units: int, h: int, r_KJ: int, bf16: bool, V: int, raw_J: int) -> None:
    """h R for one row, with R read in place: packing it would take longer than a step or two."""
    J, size = 4 * V, 2 if bf16 else SIZE
    whole = J - J % PANEL
    clear(raw_J, J)
    k = 0
    while k < V:
        count = 8 if V - k >= 8 else 1
        r, x = r_KJ + size * k * J, h + SIZE * k
        for j in range(0, whole, PANEL):
            out, here = raw_J + SIZE * j, r + size * j
            if count == 8:
                eight_rows_bf16(out, x, here, J) if bf16 else eight_rows(out, x, here, J)
            else:
                one_row_bf16(out, x, here, J) if bf16 else one_row(out, x, here, J)
        for n in range(count):
            for j in range(whole, J):
                put(raw_J, j, at(raw_J, j) + at(x, n) * read_number(r + size * (n * J + j), bf16))
        k += count
    for u in range(units):
        for g in range(4):
            copy(block + SIZE * (u * BLOCK + g * PANEL), raw_J + SIZE * (g * V + u * PANEL), width(V, u))
