"""Rotary embedding of one decoding step on a CPU. Angles are in float64; those of positions are shared by all heads.

B batch  T time (one step)  H heads  K head width  J pairs that are rotated
"""

from math import cos, floor, pi, sin
from typing import Any, NamedTuple

import torch
from numpy import float32, int64
from torch import Tensor

from exlstm.runtime.cpu.bfloat16 import copy_number, read_number, write_number
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, Floats, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.memory import SIZE, at, byte_at, long_at, put, tensor_at


class Rows(NamedTuple):
    """Addresses of resets and lengths of rows; 0 for none."""

    reset_BT: Bools
    lengths_B: I64


class Vectors(NamedTuple):
    """Addresses of queries and keys."""

    q_BTHK: Floats
    k_BTHK: Floats


class Rotated(NamedTuple):
    """Addresses of queries and keys after the rotation."""

    q_BTHK: Floats
    k_BTHK: Floats


@helper()
def is_counted(rows: Rows, b: int) -> bool:
    """Whether the step of a row is no padding."""
    return bool(rows.lengths_B == 0 or long_at(rows.lengths_B + 8 * b) > 0)


@helper()
def is_reset(rows: Rows, b: int) -> bool:
    """Whether the row is reset before the step."""
    return bool(is_counted(rows, b) and rows.reset_BT != 0 and byte_at(rows.reset_BT + b) != 0)


@helper()
def rotate(x: int, out: int, far: int, c: Any, s: Any, bf16: bool) -> None:
    """The pair of numbers at x and `far` bytes behind it, rotated."""
    left, right = read_number(x, bf16), read_number(x + far, bf16)
    write_number(out, bf16, left * c - right * s)
    write_number(out + far, bf16, right * c + left * s)


@kernel()
def rotate_rows(
    first: int,
    last: int,
    B: int,
    T: int,
    H: int,
    K: int,
    rows: Rows,
    x: Vectors,
    out: Rotated,
    position_B: I64,
    next_B: I64,
    base: float,
    bf16: bool,
) -> None:
    """Rows of the batch: one step of each."""
    size = 2 if bf16 else SIZE
    far, after_B = size * (K // 2), tensor_at(next_B, B, int64)
    for b in range(first, last):
        position = 0 if is_reset(rows, b) else long_at(position_B + 8 * b)
        after_B[b] = position + 1 if is_counted(rows, b) else position
        for f in range(K // 2):
            angle = float(position) * base ** (-2.0 * f / K)
            c, s = float32(cos(angle)), float32(sin(angle))
            for h in range(H):
                here = size * ((b * H + h) * K + f)
                rotate(x.q_BTHK + here, out.q_BTHK + here, far, c, s, bf16)
                rotate(x.k_BTHK + here, out.k_BTHK + here, far, c, s, bf16)


@kernel()
def turn_rows(
    first: int,
    last: int,
    B: int,
    T: int,
    H: int,
    K: int,
    J: int,
    rows: Rows,
    x: Vectors,
    out: Rotated,
    turn_BTHJ: F32,
    angle_BHJ: F32,
    after_BHJ: F32,
    bf16: bool,
) -> None:
    """Heads of rows: one step of each."""
    size = 2 if bf16 else SIZE
    for item in range(first, last):
        b, here = item // H, size * item * K
        counted, fresh = is_counted(rows, b), is_reset(rows, b)
        for j in range(J):
            place = item * J + j
            angle = 0.0 if fresh else float(at(angle_BHJ, place))
            if counted:
                angle += float(at(turn_BTHJ, place))
                angle -= 2.0 * pi * floor(angle / (2.0 * pi))
            put(after_BHJ, place, float32(angle))
            c, s, pair = float32(cos(angle)), float32(sin(angle)), here + 2 * j * size
            rotate(x.q_BTHK + pair, out.q_BTHK + pair, size, c, s, bf16)
            rotate(x.k_BTHK + pair, out.k_BTHK + pair, size, c, s, bf16)
        for i in range(2 * J, K):
            copy_number(x.q_BTHK + here + i * size, bf16, out.q_BTHK + here + i * size, bf16)
            copy_number(x.k_BTHK + here + i * size, bf16, out.k_BTHK + here + i * size, bf16)


def vectors_of(q_BTHK: Tensor, k_BTHK: Tensor) -> tuple[Vectors, Rotated, bool]:
    """Queries and keys as the kernels read them, and whether that is as bfloat16."""
    bf16 = q_BTHK.dtype is k_BTHK.dtype is torch.bfloat16
    x = Vectors(*((t if bf16 else t.float()).contiguous() for t in (q_BTHK, k_BTHK)))
    return x, Rotated(*map(torch.empty_like, x)), bf16


def rows_of(reset_BT: Tensor | None, lengths_B: Tensor | None) -> Rows:
    """Resets and lengths as the kernels read them."""
    return Rows(*(None if x is None else x.contiguous() for x in (reset_BT, lengths_B)))


def rotary_step_numba(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    position_B: Tensor,
    /,
    *,
    base: float,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers of `rotary_torch` for T = 1, without gradients, in float32; results have the inputs' dtypes."""
    (B, T, H, K), (x, out, bf16), rows = q_BTHK.shape, vectors_of(q_BTHK, k_BTHK), rows_of(reset_BT, lengths_B)
    position_B, next_B = position_B.contiguous(), torch.empty_like(position_B)
    cost = microseconds(bytes=4 * x.q_BTHK.nbytes, flops=30 * B * K)
    launch(rotate_rows, B, B, T, H, K, rows, x, out, position_B, next_B, base, bf16, cost=cost)
    return out.q_BTHK.to(q_BTHK.dtype), out.k_BTHK.to(k_BTHK.dtype), next_B


def turned_step_numba(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    turn_BTHJ: Tensor,
    angle_BHJ: Tensor,
    /,
    *,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers of `turned_torch` for T = 1, without gradients, in float32; results have the inputs' dtypes."""
    (B, T, H, K), (x, out, bf16), rows = q_BTHK.shape, vectors_of(q_BTHK, k_BTHK), rows_of(reset_BT, lengths_B)
    J, angle_BHJ = angle_BHJ.shape[-1], angle_BHJ.contiguous()
    angles = turn_BTHJ.float().contiguous(), angle_BHJ, torch.empty_like(angle_BHJ)
    cost = microseconds(bytes=4 * x.q_BTHK.nbytes, flops=60 * B * H * J)
    launch(turn_rows, B * H, B, T, H, K, J, rows, x, out, *angles, bf16, cost=cost)
    return out.q_BTHK.to(q_BTHK.dtype), out.k_BTHK.to(k_BTHK.dtype), angles[2]
