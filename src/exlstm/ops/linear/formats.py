"""Weights of fewer bits: int8 with a scale per row, int4 with a scale and an offset per group of 128 columns.

    int8: w = scale_n q ,  q in -127..127                int4: w = scale_ng q + offset_ng ,  q in 0..15

Both are rounded to the nearest; for int4 the range of a group is narrowed where that makes its squared error smaller.

N rows (outputs)  K columns (inputs)  G groups of a row  P bytes of a group  S columns of a group  C candidates
"""

from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 128
LANES = 16  # as in `numba.tiles`: number j of a 32-bit word is column 16 j + lane of the group


class Int8Weight(NamedTuple):
    """A weight [N, K] of one byte for each number."""

    q_NK: Tensor  # int8
    scale_N: Tensor  # float32

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        N, K = self.q_NK.shape
        return N, K


class Int4Weight(NamedTuple):
    """A weight [N, K] of half a byte for each number; columns beyond K are padding."""

    q_NGP: Tensor  # uint8
    scale_NG: Tensor  # float32
    offset_NG: Tensor  # float32
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.scale_NG.shape[0], self.columns


Weight = Tensor | Int8Weight | Int4Weight
WIDENED_NUMEL = 1 << 20  # weights that are in float32 at a time: those of a cache, up to four times faster


def to_int8(w_NK: Tensor) -> Int8Weight:
    """The nearest multiples of 1/127 of the largest weight of each row."""
    N, K = w_NK.shape
    if w_NK.is_meta:  # models are laid out on meta, where every operation costs time
        return Int8Weight(w_NK.new_empty(N, K, dtype=torch.int8), w_NK.new_empty(N, dtype=torch.float32))
    parts = [rows_to_int8(w_PK) for w_PK in torch.split(w_NK.detach(), rows_at_a_time(w_NK))]
    return parts[0] if len(parts) == 1 else Int8Weight(*map(torch.cat, zip(*parts, strict=True)))


def to_int4(w_NK: Tensor) -> Int4Weight:
    """16 levels between the smallest and the largest weight of each group, or of a somewhat narrower range."""
    N, K = w_NK.shape
    G = -(-K // GROUP)
    if w_NK.is_meta:  # as in `to_int8`
        scale_NG, offset_NG = (w_NK.new_empty(N, G, dtype=torch.float32) for _ in range(2))
        return Int4Weight(w_NK.new_empty(N, G, GROUP // 2, dtype=torch.uint8), scale_NG, offset_NG, K)
    parts = [rows_to_int4(w_PK) for w_PK in torch.split(w_NK.detach(), rows_at_a_time(w_NK))]
    if len(parts) == 1:
        return parts[0]
    q_NGP, scale_NG, offset_NG = (torch.cat(x) for x in list(zip(*parts, strict=True))[:3])
    return Int4Weight(q_NGP, scale_NG, offset_NG, K)


def rows_at_a_time(weight: Weight) -> int:
    """Rows that are in float32 at a time."""
    return max(1, WIDENED_NUMEL // max(weight.shape[1], 1))


def in_parts(weight: Weight) -> list[Weight]:
    """The weight cut into groups of rows, each a weight."""
    rows = rows_at_a_time(weight)
    if isinstance(weight, Tensor):
        return list(torch.split(weight, rows))
    if isinstance(weight, Int8Weight):
        return [Int8Weight(*parts) for parts in zip(*(torch.split(x, rows) for x in weight), strict=True)]
    q_NGP, scale_NG, offset_NG, columns = weight
    splits = zip(*(torch.split(x, rows) for x in (q_NGP, scale_NG, offset_NG)), strict=True)
    return [Int4Weight(q, scale, offset, columns) for q, scale, offset in splits]


def rows_to_int8(w_NK: Tensor) -> Int8Weight:
    """`to_int8` of some rows."""
    w_NK = w_NK.float()
    scale_N = w_NK.abs().amax(1) / 127
    q_NK = (w_NK / scale_N.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().clamp(-127, 127)
    return Int8Weight(q_NK.to(torch.int8), scale_N)


def rows_to_int4(w_NK: Tensor) -> Int4Weight:
    """`to_int4` of some rows."""
    N, K = w_NK.shape
    G = -(-K // GROUP)
    w_NK = w_NK.float()
    # padding repeats the last column, so that it widens no range
    padding = w_NK[:, -1:].expand(N, G * GROUP - K)
    w_NGS = torch.cat([w_NK, padding], dim=1).view(N, G, GROUP)
    low_NG, high_NG = w_NGS.amin(2), w_NGS.amax(2)
    best_NG = torch.full_like(low_NG, torch.inf)
    scale_NG, offset_NG, q_NGS = torch.zeros_like(low_NG), torch.zeros_like(low_NG), torch.zeros_like(w_NGS)
    for share in (1.0, 0.95, 0.9, 0.85, 0.8):
        middle_NG, half_NG = (high_NG + low_NG) / 2, share * (high_NG - low_NG) / 2
        step_NG, start_NG = half_NG * (2 / 15), middle_NG - half_NG
        tried_NGS = (w_NGS - start_NG[..., None]) / step_NG.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
        tried_NGS = tried_NGS.round_().clamp_(0, 15)
        error_NG = (tried_NGS * step_NG[..., None] + start_NG[..., None] - w_NGS).square_().sum(2)
        better_NG = error_NG < best_NG
        best_NG = torch.where(better_NG, error_NG, best_NG)
        scale_NG, offset_NG = torch.where(better_NG, step_NG, scale_NG), torch.where(better_NG, start_NG, offset_NG)
        q_NGS = torch.where(better_NG[..., None], tried_NGS, q_NGS)
    return Int4Weight(pack(q_NGS.to(torch.uint8)), scale_NG, offset_NG, K)


def pack(q_NGS: Tensor) -> Tensor:
    """Numbers 0..15 of each group, two to a byte: q_NGP."""
    N, G, _ = q_NGS.shape
    pairs = q_NGS.view(N, G, 4, 2, LANES)  # two numbers of each byte, four bytes of each word, 16 words
    return (pairs[:, :, :, 0] | (pairs[:, :, :, 1] << 4)).mT.reshape(N, G, GROUP // 2)


def unpack(q_NGP: Tensor) -> Tensor:
    """The inverse of `pack`: q_NGS."""
    N, G, _ = q_NGP.shape
    bytes_ = q_NGP.view(N, G, LANES, 4).mT
    return torch.stack([bytes_ & 15, bytes_ >> 4], dim=3).reshape(N, G, GROUP)


def dequantised(weight: Weight, dtype: torch.dtype | None = None) -> Tensor:
    """w_NK in `dtype`; by default in its own dtype, quantized weights in float32."""
    if isinstance(weight, Int8Weight):
        w_NK = weight.q_NK * weight.scale_N[:, None]
    elif isinstance(weight, Int4Weight):
        w_NGS = unpack(weight.q_NGP) * weight.scale_NG[..., None] + weight.offset_NG[..., None]
        w_NK = w_NGS.flatten(1)[:, : weight.columns]
    else:
        w_NK = weight
    return w_NK if dtype is None else w_NK.to(dtype)
