"""y = x W^T + b for a few rows of x on a CPU, with the weights as they are stored: read once, shared among threads.

Products are summed in float32 and rounded once. Several maps of the same x are one launch; its items are blocks of rows
of W. More than a few rows of x, all in float32, are multiplied as in `blocks`.

M rows of x  K columns  N rows of W  G groups of 128 columns  S numbers of x in the layout of int4 tiles
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy import float32
from torch import Tensor

from exlstm.ops.linear.formats import GROUP, Int4Weight, Int8Weight, Weight
from exlstm.ops.linear.numba.blocks import PANEL, map_blocks, pack_panels, padded
from exlstm.ops.linear.numba.maps import (
    BFLOAT16,
    FLOAT32,
    INT4,
    INT8,
    MAP_BYTES,
    NONE,
    Map,
    map_at,
    map_of,
    number,
)
from exlstm.ops.linear.numba.tiles import SPREAD, STEPS, WIDTH, tile
from exlstm.runtime.cpu.bfloat16 import copy_number, write_number
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import BF16, F32, Addresses, Constants, ConstantTable, address, kernel
from exlstm.runtime.cpu.launch import launch, microseconds, threads_for
from exlstm.runtime.cpu.memory import at, clear, long_at, put
from exlstm.runtime.cpu.vectors import register_width

KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}
# sixteen sums of 16 numbers at a time, which narrower registers have no room for
HAS_WIDE_TILES = register_width() == WIDTH
# rows of x for which a pass over W as it is takes no longer than the products of `blocks`
FEW = {FLOAT32: 8, BFLOAT16: 10, INT8: 10, INT4: 10}
if HAS_WIDE_TILES:
    FEW = {FLOAT32: 12, BFLOAT16: 48, INT8: 24, INT4: 12}
BLOCK_BYTES = 32 << 10, 256 << 10  # of W in an item: it takes 2 to 20 us

STEP_FLOAT32, STEP_BFLOAT16, STEP_INT8 = STEPS["float32"], STEPS["bfloat16"], STEPS["int8"]


def sums_of(kind: str) -> Any:
    """A function that runs the tile of this kind, for rows of W and of x.

    4 and 1, 2 and 2, 1 and 4, or 1 and 1; with wide registers 4 and 4, and 2 and 8, too.
    """
    four_rows, two_by_two, four_columns, single = (tile(kind, *s) for s in ((4, 1), (2, 2), (1, 4), (1, 1)))
    four_by_four, two_by_eight = (tile(kind, *s) for s in (((4, 4), (2, 8)) if HAS_WIDE_TILES else ((1, 4), (2, 2))))

    @helper(inline=True)
    def sums(rows: int, batch: int, w: int, w_stride: int, x: int, x_stride: int, scale: int, offset: int,
             group_stride: int, lines: int, out: int) -> None:  # fmt: skip
        if batch == 8:
            two_by_eight(w, w_stride, x, x_stride, scale, offset, group_stride, lines, out)
        elif batch == 4 and rows == 4:
            four_by_four(w, w_stride, x, x_stride, scale, offset, group_stride, lines, out)
        elif batch == 4:
            four_columns(w, w_stride, x, x_stride, scale, offset, group_stride, lines, out)
        elif batch == 2:
            two_by_two(w, w_stride, x, x_stride, scale, offset, group_stride, lines, out)
        elif rows == 4:
            four_rows(w, w_stride, x, x_stride, scale, offset, group_stride, lines, out)
        else:
            single(w, w_stride, x, x_stride, scale, offset, group_stride, lines, out)

    return sums


sums_float32, sums_bfloat16, sums_int8, sums_int4 = (sums_of(kind) for kind in ("float32", "bfloat16", "int8", "int4"))


@helper()
def tile_sums(kind: int, w: int, w_stride: int, scale: int, offset: int, G: int, first: int, apart: int, rows: int,
           x: int, x_stride: int, batch: int, lines: int, done: int, K: int, out: int) -> None:  # fmt: skip
    """out[batch, rows]: products of rows first, first + apart, ... of W, so many, with `batch` rows of x."""
    start, w_stride, group = w + first * w_stride, apart * w_stride, 4 * G * first
    if lines == 0:
        clear(out, batch * rows)
    elif kind == FLOAT32:
        sums_float32(rows, batch, start, w_stride, x, x_stride, 0, 0, 0, lines, out)
    elif kind == BFLOAT16:
        sums_bfloat16(rows, batch, start, w_stride, x, x_stride, 0, 0, 0, lines, out)
    elif kind == INT8:
        sums_int8(rows, batch, start, w_stride, x, x_stride, 0, 0, 0, lines, out)
    else:
        sums_int4(rows, batch, start, w_stride, x, x_stride, scale + group, offset + group, 4 * G * apart, lines, out)
        return
    for i in range(batch):
        for n in range(rows):
            total = at(out, i * rows + n)
            for k in range(done, K):
                total += number(kind, start + n * w_stride, k) * at(x + i * x_stride, k)
            put(out, i * rows + n, total * at(scale, first + n * apart) if kind == INT8 else total)


class Input(NamedTuple):
    """x inside the kernel: its addresses in float32, and in the layout of int4 tiles."""

    M: int
    K: int
    S: int
    x: int
    spread_x: int


@kernel()
def map_items(first: int, last: int, M: int, K: int, S: int, x_MK: F32, spread_MS: F32, num_maps: int, maps: Constants,
              results: Addresses) -> None:  # fmt: skip
    """Items of all maps: a block of rows of one W, with all rows of x."""
    x, n = Input(M, K, S, x_MK, spread_MS), num_maps - 1
    for item in range(first, last):
        n = map_of(item, n, num_maps, maps)
        map_item(x, map_at(maps + MAP_BYTES * n), item, long_at(results + 8 * n))


@helper()
def map_item(x: Input, w: Map, item: int, y: int) -> None:
    """One item of a map, written to the result y."""
    M, K, here = x.M, x.K, x.x
    G, x_stride, w_stride, step = (K + GROUP - 1) // GROUP, 4 * K, K, STEP_INT8
    if w.kind == FLOAT32:
        step, w_stride = STEP_FLOAT32, 4 * K
    elif w.kind == BFLOAT16:
        step, w_stride = STEP_BFLOAT16, 2 * K
    lines = K // step
    if w.kind == INT4:
        here, x_stride, w_stride, lines = x.spread_x, 4 * x.S, 64 * G, G
    begin = (item - w.first_item) * w.item_rows
    count = min(w.rows, begin + w.item_rows) - begin
    # four rows of W at a time, each from its own part of the item; the rest go one by one
    apart = count // 4
    room = np.empty(16, np.float32)
    out = room.ctypes.data
    for n in range(apart + count % 4):
        count_here = 4 if n < apart else 1
        first = begin + (n if n < apart else 3 * apart + n)
        m = 0
        while m < M:
            # rows of W stay in cache for all rows of x; a result does not depend on its tile
            batch = 4 if M - m >= 4 else (2 if M - m >= 2 and count_here == 4 else 1)
            rows = 4 // batch if count_here == 4 else 1
            if HAS_WIDE_TILES and count_here == 4 and batch == 4:
                batch, rows = (8, 2) if M - m >= 8 else (4, 4)
            for j in range(0, count_here, rows):
                row = first + j * apart
                tile_sums(w.kind, w.weight, w_stride, w.scale, w.offset, G, row, apart, rows, here + m * x_stride,
                          x_stride, batch, lines, lines * step, K, out)  # fmt: skip
                for i in range(batch):
                    for k in range(rows):
                        total, column = at(out, i * rows + k), row + k * apart
                        if w.bias_kind != NONE:
                            total += number(w.bias_kind, w.bias, column)
                        bf16 = w.result_kind == BFLOAT16
                        write_number(y + ((m + i) * w.rows + column) * (2 if bf16 else 4), bf16, total)
            m += batch


@kernel()
def spread(first: int, last: int, M: int, K: int, S: int, x_MK: F32, out_MS: F32) -> None:
    """Rows of x in the layout of int4 tiles, padded with zeros. See `tiles`."""
    for m in range(first, last):
        for g in range((K + GROUP - 1) // GROUP):
            here = out_MS + 4 * (m * S + g * SPREAD)
            for lane in range(WIDTH):
                total, factor = float32(0.0), float32(1.0)
                for j in range(8):
                    k = GROUP * g + WIDTH * j + lane
                    value = at(x_MK, m * K + k) if k < K else float32(0.0)
                    total += value
                    put(here, WIDTH * j + lane, value * (factor if j < 7 else float32(1.0)))
                    factor *= float32(0.0625)
                put(here, GROUP + lane, float32(-8.0) * total)


@kernel()
def widen(first: int, last: int, M: int, K: int, x_MK: BF16, out_MK: F32) -> None:
    """Rows in bfloat16 to float32."""
    for k in range(first * K, last * K):
        copy_number(x_MK + 2 * k, True, out_MK + 4 * k, False)


class Stored(NamedTuple):
    """W in memory: its kind, the bytes of a row, and the addresses of its numbers, scales and offsets."""

    kind: int
    row_bytes: int
    addresses: tuple[int, int, int]


def stored(weight: Weight) -> Stored:
    """The addresses of W."""
    if type(weight) is Int8Weight:
        N, K = weight.shape
        return Stored(INT8, K, (address(weight.q_NK, N * K, torch.int8), address(weight.scale_N, N, torch.float32), 0))
    if type(weight) is Int4Weight:
        N, G = weight.shape[0], -(-weight.columns // GROUP)
        scale, offset = (address(x, N * G, torch.float32) for x in (weight.scale_NG, weight.offset_NG))
        return Stored(INT4, 72 * G, (address(weight.q_NGP, N * G * GROUP // 2, torch.uint8), scale, offset))
    w_NK = cast("Tensor", weight)
    N, K = w_NK.shape
    return Stored(KINDS[w_NK.dtype], K * w_NK.itemsize, (address(w_NK, N * K, w_NK.dtype), 0, 0))


class Plan:
    """x W^T + b for every map (W, b, dtype of the result), as one launch: the part that does not depend on x.

    It holds references to the tensors, whose memory must not move.
    """

    def __init__(self, maps: Sequence[tuple[Weight, Tensor | None, torch.dtype]]) -> None:
        self.maps, self.columns = maps, maps[0][0].shape[1]
        self.rows = [weight.shape[0] for weight, _, _ in maps]
        self.dtypes = [dtype for _, _, dtype in maps]
        self.sizes: dict[torch.dtype, list[int]] = {}  # rows of the maps, by dtype of the result
        for rows, dtype in zip(self.rows, self.dtypes, strict=True):
            self.sizes.setdefault(dtype, []).append(rows)
        self.stored = [stored(weight) for weight, _, _ in maps]
        self.bytes = sum(rows * each.row_bytes for rows, each in zip(self.rows, self.stored, strict=True))
        self.groups = -(-self.columns // GROUP) if any(each.kind == INT4 for each in self.stored) else 0
        self.tables: dict[int, tuple[ConstantTable, int]] = {}
        self.few = max(FEW[each.kind] for each in self.stored)

    def table(self, threads: int) -> tuple[ConstantTable, int]:
        """The maps cut into items for so many threads, and how many items there are."""
        if threads not in self.tables:
            share, items = min(max(self.bytes // (8 * threads), BLOCK_BYTES[0]), BLOCK_BYTES[1]), 0
            numbers: list[int] = []
            for (_, bias, dtype), rows, held in zip(self.maps, self.rows, self.stored, strict=True):
                item_rows = max(4, share // held.row_bytes // 4 * 4) if threads > 1 else rows
                b, b_kind = (0, NONE) if bias is None else (address(bias, rows, bias.dtype), KINDS[bias.dtype])
                numbers += Map(held.kind, rows, item_rows, items, *held.addresses, b, b_kind, KINDS[dtype])
                items += -(-rows // item_rows)
            self.tables[threads] = ConstantTable(numbers, self.maps), items
        return self.tables[threads]

    def results(self, outer: Sequence[int], M: int) -> list[Tensor]:
        """A tensor for every result. For one row they are views of one allocation, which is faster."""
        if M > 1 or len(self.rows) == 1:
            return [torch.empty((*outer, N), dtype=dtype) for N, dtype in zip(self.rows, self.dtypes, strict=True)]
        cut = {
            dtype: iter(torch.split(torch.empty((*outer, sum(sizes)), dtype=dtype), sizes, -1))
            for dtype, sizes in self.sizes.items()
        }
        return [next(cut[dtype]) for dtype in self.dtypes]

    def run(self, x: Tensor, results: list[Tensor] | None = None) -> list[Tensor]:
        """The results. x: [..., K], float32 or bfloat16, contiguous."""
        *outer, K = x.shape
        M, S = x.numel() // K, self.groups * SPREAD
        results = self.results(outer, M) if results is None else results
        if x.dtype is torch.bfloat16:
            x, narrow = torch.empty(M, K), x
            launch(widen, M, M, K, narrow, x, cost=microseconds(bytes=6 * M * K))
        if self.few < M:
            return self.run_blocks(x, M, results)
        spread_MS = torch.empty(M, S) if S else None
        if S:
            launch(spread, M, M, K, S, x, spread_MS, cost=microseconds(bytes=8 * M * K))
        cost = microseconds(bytes=self.bytes, flops=M * self.bytes // 8)
        table, items = self.table(threads_for(cost))
        launch(map_items, items, M, K, S, x, spread_MS, len(results), table, results, cost=cost)
        return results

    def run_blocks(self, x: Tensor, M: int, results: list[Tensor]) -> list[Tensor]:
        """The results for tens of rows of x and more. x: float32."""
        K = self.columns
        panels = torch.empty(K * padded(M))
        launch(pack_panels, -(-M // PANEL), M, K, x, panels, cost=microseconds(bytes=8 * M * K))
        cost = microseconds(bytes=self.bytes, flops=2 * padded(M) * K * sum(self.rows))
        table, items = self.table(threads_for(cost))
        launch(map_blocks, items, M, K, panels, len(results), table, results, cost=cost)
        return results
