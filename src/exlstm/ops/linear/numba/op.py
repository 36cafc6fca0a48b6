"""y = x W^T + b for a few rows of x on a CPU, with the weights as they are stored: read once, shared out to a `Team`.

Products are summed in float32 and rounded once. Several maps of the same x are one job. A job is a row of int64, which
threads get by its address:

    rows of x, columns, x, x for int4, number of maps;
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
from exlstm.ops.linear.numba.tiles import LANES, SPREAD, STEPS, tile
from exlstm.runtime.addresses import address, addresses
from exlstm.runtime.capture import recording
from exlstm.runtime.cpu.jit import compiled, helper
from exlstm.runtime.cpu.jobs import address_of, alone
from exlstm.runtime.cpu.math import bits_of_float, float_of_bits
from exlstm.runtime.cpu.memory import at, byte_at, clear, long_at, put, put_short, short_at
from exlstm.runtime.cpu.team import team

NONE, FLOAT32, BFLOAT16, INT8, INT4 = range(5)
KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}
HEAD, MAP = 5, 11  # numbers in a job before the maps, and per map
PIECE_BYTES = 32 << 10, 256 << 10  # a piece takes 2 to 20 us
ALONE_BYTES = 64 << 10  # less than this is not worth a second thread

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


def sums_of(kind: str) -> Any:
    """A function that runs the tile of this kind, for rows of W and of x: 4 and 1, 2 and 2, 1 and 4, or 1 and 1."""
    four_rows, two_by_two, four_columns, single = (tile(kind, *s) for s in ((4, 1), (2, 2), (1, 4), (1, 1)))

    @helper()
    def sums(rows: int, batch: int, w: int, w_stride: int, x: int, x_stride: int, scale: int, offset: int,
             group_stride: int, lines: int, out: int) -> None:  # fmt: skip
        if batch == 4:
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
def block(kind: int, w: int, w_stride: int, scale: int, offset: int, G: int, first: int, apart: int, rows: int,
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


@helper()
def piece_of_job(job: int, index: int) -> None:
    """One piece of a job: some rows of one W with all rows of x."""
    here = job + 8 * (HEAD + MAP * (long_at(job + 32) - 1))
    while long_at(here + 24) > index:
        here -= 8 * MAP
    M, K, x = long_at(job), long_at(job + 8), long_at(job + 16)
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
    begin = (index - long_at(here + 24)) * per_piece
    count = min(N, begin + per_piece) - begin
    # four rows of W are read side by side, each from its own part of the piece; those left over go one by one
    apart = count // 4
    room = np.empty(16, np.float32)
    out = room.ctypes.data
    for n in range(apart + count % 4):
        together = 4 if n < apart else 1
        first = begin + (n if n < apart else 3 * apart + n)
        m = 0
        while m < M:
            # they stay near while all rows of x pass by; a result does not depend on what shares its tile
            batch = 4 if M - m >= 4 else (2 if M - m >= 2 and together == 4 else 1)
            rows = 4 // batch if together == 4 else 1
            for j in range(0, together, rows):
                row = first + j * apart
                block(kind, w, w_stride, scale, offset, G, row, apart, rows, x + m * x_stride, x_stride,
                      batch, lines, lines * step, K, out)  # fmt: skip
                for i in range(batch):
                    for k in range(rows):
                        total, column = at(out, i * rows + k), row + k * apart
                        if bias_kind != NONE:
                            total += number(bias_kind, bias, column)
                        write(y_kind, y, (m + i) * N + column, total)
            m += batch


@compiled
def spread(x: int, M: int, K: int, out: int) -> None:
    """x as the tiles for int4 want it, zeros at the end. See `numba_tiles`."""
    G = (K + GROUP - 1) // GROUP
    for m in range(M):
        for g in range(G):
            here = out + 4 * SPREAD * (m * G + g)
            for lane in range(LANES):
                total, factor = float32(0.0), float32(1.0)
                for j in range(8):
                    k = GROUP * g + LANES * j + lane
                    value = at(x, m * K + k) if k < K else float32(0.0)
                    total += value
                    put(here, LANES * j + lane, value * (factor if j < 7 else float32(1.0)))
                    factor *= float32(0.0625)
                put(here, GROUP + lane, float32(-8.0) * total)


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
    spread(long_at(job), long_at(job + 8), long_at(job + 16), long_at(job + 24))


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
        N, K = weight.shape
        return [INT8, N, 0, 0, address(weight.q_NK, N * K, torch.int8), address(weight.scale_N, N), 0], K
    if type(weight) is Int4Weight:
        (N, _), G = weight.shape, -(-weight.columns // GROUP)
        q = address(weight.q_NGP, N * G * GROUP // 2, torch.uint8)
        return [INT4, N, 0, 0, q, *addresses(N * G, weight.scale_NG, weight.offset_NG)], 72 * G
    w_NK = cast("Tensor", weight)
    N, K = w_NK.shape
    return [KINDS[w_NK.dtype], N, 0, 0, address(w_NK, N * K, w_NK.dtype), 0, 0], K * w_NK.itemsize


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
            numbers += (0, NONE) if bias is None else (address(bias, numbers[1], bias.dtype), KINDS[bias.dtype])
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
            job = array("q", (0, self.columns, 0, 0, len(self.parts)))
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
        job, outputs, groups = array("q", template), self.outputs(outer, M), self.groups
        place = address(x, M * self.columns, x.dtype)
        narrow, tape, room = x.dtype != torch.float32, recording(), 0
        if groups or narrow:
            count = M * (K + groups * SPREAD)
            # what is recorded needs memory that stays as it is
            room = scratch.take(count) if tape is None else address(tape.keep(torch.empty(count)), count)
        if narrow:
            widen(place, M * K, room)
            if tape is not None:
                tape.add(widen_piece, place, M * K, room)
            place = room
        if groups:
            job[3] = room + 4 * M * K
            spread(place, M, K, job[3])
            if tape is not None:
                tape.add(spread_piece, place, M, K, job[3])
        job[0], job[2] = M, place
        at = HEAD + 9
        for y, (numbers, _) in zip(outputs, self.parts, strict=True):
            job[at] = address(y, M * numbers[1], y.dtype)
            at += MAP
        if tape is not None:
            tape.add(run_piece, *job, pieces=pieces, shared=threads > 1)
        run = alone if threads == 1 else team(threads).run
        run(address_of(run_piece), job.buffer_info()[0], pieces)
        return outputs
