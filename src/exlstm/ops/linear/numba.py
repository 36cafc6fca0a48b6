"""y = x W^T + b for a few rows of x on a CPU, with the weights as they are stored: read once, shared out to a `Team`.

Products are summed in float32 and rounded once. Several maps of the same x are one job. A job is a row of int64, which
threads get by its address:

    rows of x, columns, x, x for int4, sums of x in groups, number of maps;
    then per map: kind, rows of W, rows per piece, first piece, W, scales, offsets, bias, its kind, y, its kind

M rows of x  K columns  N rows of W  G groups of 128 columns
"""

import threading
from array import array
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy import float32, int32
from torch import Tensor

from exlstm.ops.linear.formats import GROUP, Int4Weight, Int8Weight, Weight
from exlstm.ops.linear.numba_tiles import LANES, SPREAD, STEPS, tile
from exlstm.ops.numba_jit import compiled, helper
from exlstm.ops.numba_jobs import address_of, alone
from exlstm.ops.numba_math import bits_of_float, float_of_bits
from exlstm.ops.numba_team import team
from exlstm.ops.numba_tensors import at, byte_at, long_at, put, put_short, short_at
from exlstm.ops.tape import recording

NONE, FLOAT32, BFLOAT16, INT8, INT4 = range(5)
KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}
HEAD, MAP = 6, 11  # numbers in a job before the maps, and per map
PIECE_BYTES = 32 << 10, 256 << 10  # a piece takes 2 to 20 us
ALONE_BYTES = 64 << 10  # less than this is not worth a second thread

float32_4x1, float32_2x2, float32_1x4 = tile("float32", 4, 1), tile("float32", 2, 2), tile("float32", 1, 4)
float32_1x1, float32_1x2 = tile("float32", 1, 1), tile("float32", 1, 2)
bfloat16_4x1, bfloat16_2x2, bfloat16_1x4 = tile("bfloat16", 4, 1), tile("bfloat16", 2, 2), tile("bfloat16", 1, 4)
bfloat16_1x1, bfloat16_1x2 = tile("bfloat16", 1, 1), tile("bfloat16", 1, 2)
int8_4x1, int8_2x2, int8_1x4 = tile("int8", 4, 1), tile("int8", 2, 2), tile("int8", 1, 4)
int8_1x1, int8_1x2 = tile("int8", 1, 1), tile("int8", 1, 2)
int4_2x1, int4_1x1, int4_1x2 = tile("int4", 2, 1), tile("int4", 1, 1), tile("int4", 1, 2)
STEP_FLOAT32, STEP_BFLOAT16, STEP_INT8 = STEPS["float32"], STEPS["bfloat16"], STEPS["int8"]


@helper()
def number(kind: int, address: int, index: int) -> Any:
    """Element `index` of an array of this kind, as float32."""
    if kind == FLOAT32:
        return at(address, index)
    if kind == BFLOAT16:
        return float_of_bits(int32(int32(short_at(address + 2 * index)) << int32(16)))
    return float32(byte_at(address + index))


@helper()
def write(kind: int, address: int, index: int, x: Any) -> None:
    """x as element `index` of an array of float32 or, rounded to the nearest even, of bfloat16."""
    if kind == FLOAT32:
        put(address, index, x)
        return
    bits = np.uint32(bits_of_float(x))
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    put_short(address + 2 * index, np.uint16((bits >> np.uint32(16)) if nan else rounded))


@helper()
def sums(kind: int, rows: int, batch: int, w: int, w_stride: int, x: int, x_stride: int, scale: int,
          scale_stride: int, lines: int, out: int) -> None:  # fmt: skip
    """Runs the tile of this kind and size."""
    a, b, c, d, e, f = w, w_stride, x, x_stride, scale, scale_stride
    if kind == FLOAT32:
        if batch == 4:
            float32_1x4(a, b, c, d, e, f, lines, out)
        elif batch == 2:
            float32_2x2(a, b, c, d, e, f, lines, out) if rows == 2 else float32_1x2(a, b, c, d, e, f, lines, out)
        else:
            float32_4x1(a, b, c, d, e, f, lines, out) if rows == 4 else float32_1x1(a, b, c, d, e, f, lines, out)
    elif kind == BFLOAT16:
        if batch == 4:
            bfloat16_1x4(a, b, c, d, e, f, lines, out)
        elif batch == 2:
            bfloat16_2x2(a, b, c, d, e, f, lines, out) if rows == 2 else bfloat16_1x2(a, b, c, d, e, f, lines, out)
        else:
            bfloat16_4x1(a, b, c, d, e, f, lines, out) if rows == 4 else bfloat16_1x1(a, b, c, d, e, f, lines, out)
    elif kind == INT8:
        if batch == 4:
            int8_1x4(a, b, c, d, e, f, lines, out)
        elif batch == 2:
            int8_2x2(a, b, c, d, e, f, lines, out) if rows == 2 else int8_1x2(a, b, c, d, e, f, lines, out)
        else:
            int8_4x1(a, b, c, d, e, f, lines, out) if rows == 4 else int8_1x1(a, b, c, d, e, f, lines, out)
    elif batch == 2:
        int4_1x2(a, b, c, d, e, f, lines, out)
    else:
        int4_2x1(a, b, c, d, e, f, lines, out) if rows == 2 else int4_1x1(a, b, c, d, e, f, lines, out)


@helper()
def block(kind: int, w: int, w_stride: int, scale: int, offset: int, G: int, first: int, rows: int, x: int,
           x_stride: int, grouped: int, batch: int, lines: int, done: int, K: int, out: int) -> None:  # fmt: skip
    """out[batch, rows]: products of `rows` rows of W from `first` on with `batch` rows of x."""
    start = w + first * w_stride
    if lines > 0:
        sums(kind, rows, batch, start, w_stride, x, x_stride, scale + 4 * G * first, 4 * G, lines, out)
    else:
        for i in range(batch * rows):
            put(out, i, float32(0.0))
    if kind == INT4:
        for i in range(batch):
            for n in range(rows):
                total = float32(0.0)
                for g in range(G):
                    # the tile has summed (q - 8) x
                    middle = at(offset, (first + n) * G + g) + float32(8.0) * at(scale, (first + n) * G + g)
                    total += middle * at(grouped, i * G + g)
                put(out, i * rows + n, at(out, i * rows + n) + total)
        return
    for i in range(batch):
        for n in range(rows):
            total = at(out, i * rows + n)
            for k in range(done, K):
                total += number(kind, start + n * w_stride, k) * at(x + i * x_stride, k)
            put(out, i * rows + n, total * at(scale, first + n) if kind == INT8 else total)


@helper()
def piece_of_job(job: int, index: int) -> None:
    """One piece of a job: some rows of one W with all rows of x."""
    here = job + 8 * (HEAD + MAP * (long_at(job + 40) - 1))
    while long_at(here + 24) > index:
        here -= 8 * MAP
    M, K, x, grouped = long_at(job), long_at(job + 8), long_at(job + 16), long_at(job + 32)
    kind, N, per_piece = long_at(here), long_at(here + 8), long_at(here + 16)
    w, scale, offset, bias = long_at(here + 32), long_at(here + 40), long_at(here + 48), long_at(here + 56)
    bias_kind, y, y_kind = long_at(here + 64), long_at(here + 72), long_at(here + 80)
    G = (K + GROUP - 1) // GROUP
    x_stride, w_stride, step = 4 * K, K, STEP_INT8
    if kind == FLOAT32:
        step, w_stride = STEP_FLOAT32, 4 * K
    elif kind == BFLOAT16:
        step, w_stride = STEP_BFLOAT16, 2 * K
    lines = K // step
    if kind == INT4:
        x, x_stride, w_stride, lines = long_at(job + 24), 4 * G * SPREAD, 64 * G, G
    n = (index - long_at(here + 24)) * per_piece
    last = min(N, n + per_piece)
    room = np.empty(16, np.float32)
    out = room.ctypes.data
    while n < last:
        # four rows of W stay near while all rows of x pass by; a result does not depend on what shares its tile
        end, m = min(n + 4, last), 0
        while m < M:
            batch = 4 if M - m >= 4 and kind != INT4 else (2 if M - m >= 2 else 1)
            most = 4 // batch if kind != INT4 else 2 // batch
            row = n
            while row < end:
                rows = most if end - row >= most else 1
                block(kind, w, w_stride, scale, offset, G, row, rows, x + m * x_stride, x_stride,
                      grouped + 4 * m * G, batch, lines, lines * step, K, out)  # fmt: skip
                for i in range(batch):
                    for j in range(rows):
                        total = at(out, i * rows + j)
                        if bias_kind != NONE:
                            total += number(bias_kind, bias, row + j)
                        write(y_kind, y, (m + i) * N + row + j, total)
                row += rows
            m += batch
        n = end


@compiled
def spread(x: int, M: int, K: int, scaled: int, grouped: int) -> None:
    """x as the tiles for int4 want it, zeros at the end, and its sums in groups. See `numba_tiles`."""
    G = (K + GROUP - 1) // GROUP
    for m in range(M):
        for g in range(G):
            out, total = scaled + 4 * SPREAD * (m * G + g), float32(0.0)
            for lane in range(LANES):
                lane_total, factor = float32(0.0), float32(1.0)
                for j in range(8):
                    k = GROUP * g + LANES * j + lane
                    value = at(x, m * K + k) if k < K else float32(0.0)
                    lane_total += value
                    put(out, LANES * j + lane, value * (factor if j < 7 else float32(1.0)))
                    factor *= float32(0.0625)
                put(out, GROUP + lane, float32(-8.0) * lane_total)
                total += lane_total
            put(grouped, m * G + g, total)


@compiled
def widen(x: int, count: int, wide: int) -> None:
    """bfloat16 to float32."""
    for k in range(count):
        put(wide, k, number(BFLOAT16, x, k))


def run_piece(job: int, index: int) -> None:
    """What threads call."""
    piece_of_job(job, index)


def widen_piece(job: int, _index: int) -> None:
    """For a `Tape`: address of bfloat16, how many, where to."""
    widen(long_at(job), long_at(job + 8), long_at(job + 16))


def spread_piece(job: int, _index: int) -> None:
    """For a `Tape`: the arguments of `spread`."""
    spread(long_at(job), long_at(job + 8), long_at(job + 16), long_at(job + 24), long_at(job + 32))


class Scratch(threading.local):
    """Memory for x in the form that kernels read, of each thread that calls: used within a call only."""

    def __init__(self) -> None:
        self.memory, self.address = np.empty(0, np.float32), 0

    def take(self, count: int) -> int:
        """Address of so many float32."""
        if count > len(self.memory):
            self.memory = np.empty(2 * count, np.float32)
            self.address = self.memory.ctypes.data
        return self.address


scratch = Scratch()


def described(weight: Weight) -> tuple[list[int], int]:
    """Of one map: kind, rows, two numbers left open, three addresses; and the bytes of a row."""
    if type(weight) is Int8Weight:
        q_NK = weight.q_NK
        N, K = q_NK.shape
        return [INT8, N, 0, 0, q_NK.data_ptr(), weight.scale_N.data_ptr(), 0], K
    if type(weight) is Int4Weight:
        N, G = weight.scale_NG.shape
        pointers = (weight.q_NGP.data_ptr(), weight.scale_NG.data_ptr(), weight.offset_NG.data_ptr())
        return [INT4, N, 0, 0, *pointers], 72 * G
    w_NK = cast("Tensor", weight)
    N, K = w_NK.shape
    return [KINDS[w_NK.dtype], N, 0, 0, w_NK.data_ptr(), 0, 0], K * w_NK.itemsize


class Plan:
    """x W^T + b for every map (W, b, dtype of the result), as one job: all of it that does not depend on x.

    Holds addresses: whoever keeps a plan keeps the tensors, where they are.
    """

    def __init__(self, maps: Sequence[tuple[Weight, Tensor | None, torch.dtype]]) -> None:
        self.parts: list[tuple[list[int], int]] = []
        self.sizes: dict[torch.dtype, list[int]] = {}  # rows of the maps, by dtype of the result
        self.dtypes = [dtype for _, _, dtype in maps]
        for weight, bias, dtype in maps:
            numbers, row_bytes = described(weight)
            numbers += (0, NONE) if bias is None else (bias.data_ptr(), KINDS[bias.dtype])
            numbers += (0, KINDS[dtype])
            self.parts.append((numbers, row_bytes))
            self.sizes.setdefault(dtype, []).append(numbers[1])
        self.bytes = sum(numbers[1] * row_bytes for numbers, row_bytes in self.parts)
        self.columns = maps[0][0].shape[1]
        self.groups = -(-self.columns // GROUP) if any(numbers[0] == INT4 for numbers, _ in self.parts) else 0
        self.jobs: dict[int, tuple[Any, int]] = {}

    def job(self, threads: int) -> tuple[Any, int]:
        """The job for so many threads, without what depends on x; and how many pieces it has."""
        if threads not in self.jobs:
            share, pieces = min(max(self.bytes // (8 * threads), PIECE_BYTES[0]), PIECE_BYTES[1]), 0
            job = array("q", (0, self.columns, 0, 0, 0, len(self.parts)))
            for numbers, row_bytes in self.parts:
                per_piece = max(4, share // row_bytes // 4 * 4) if threads > 1 else numbers[1]
                job.extend((*numbers[:2], per_piece, pieces, *numbers[4:]))
                pieces += -(-numbers[1] // per_piece)
            self.jobs[threads] = job, pieces
        return self.jobs[threads]

    def outputs(self, outer: Sequence[int], M: int) -> list[Tensor]:
        """A tensor for every result. For one row they are cut from one piece of memory, which is faster to get."""
        if M > 1 or len(self.parts) == 1:
            return [
                torch.empty((*outer, numbers[1]), dtype=dtype)
                for (numbers, _), dtype in zip(self.parts, self.dtypes, strict=True)
            ]
        cut = {
            dtype: iter(torch.split(torch.empty((*outer, sum(sizes)), dtype=dtype), sizes, -1))
            for dtype, sizes in self.sizes.items()
        }
        return [next(cut[dtype]) for dtype in self.dtypes]

    def run(self, x: Tensor) -> list[Tensor]:
        """The results. x: [..., K], float32 or bfloat16, contiguous."""
        *outer, K = x.shape
        M = x.numel() // K
        threads = torch.get_num_threads() if self.bytes * M > ALONE_BYTES else 1
        template, pieces = self.job(threads)
        job, outputs, address, groups = array("q", template), self.outputs(outer, M), x.data_ptr(), self.groups
        narrow, tape, room = x.dtype != torch.float32, recording(), 0
        if groups or narrow:
            count = M * (K + groups * (SPREAD + 1))
            # what is recorded needs memory that stays as it is
            room = scratch.take(count) if tape is None else tape.keep(torch.empty(count)).data_ptr()
        if narrow:
            widen(address, M * K, room)
            if tape is not None:
                tape.add(widen_piece, address, M * K, room)
            address = room
        if groups:
            job[3] = room + 4 * M * K
            job[4] = job[3] + 4 * M * groups * SPREAD
            spread(address, M, K, job[3], job[4])
            if tape is not None:
                tape.add(spread_piece, address, M, K, job[3], job[4])
        job[0], job[2] = M, address
        at = HEAD + 9
        for y in outputs:
            job[at] = y.data_ptr()
            at += MAP
        if tape is not None:
            tape.add(run_piece, *job, pieces=pieces, shared=threads > 1)
        run = alone if threads == 1 else team(threads).run
        run(address_of(run_piece), job.buffer_info()[0], pieces)
        return outputs
