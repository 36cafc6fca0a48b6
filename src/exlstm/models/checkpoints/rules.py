"""Invertible rules between the tensors of a foreign layout ("theirs") and ours.

On the meta device rules give shapes, so that a file is checked before any tensor of it is read.

D width  H heads  G gates  V, K channels of a head
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

TensorMap = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Rule:
    """Two maps of tensors: `to_ours` makes those named `ours` of those named `theirs`, `to_theirs` is its inverse."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_ours: TensorMap
    to_theirs: TensorMap


def one(ours: str, theirs: str, to_ours: Callable[[Tensor], Tensor], to_theirs: Callable[[Tensor], Tensor]) -> Rule:
    """Rule of one tensor of theirs for one of ours."""
    return Rule((ours,), (theirs,), lambda xs: [to_ours(xs[0])], lambda xs: [to_theirs(xs[0])])


def same(ours: str, theirs: str) -> Rule:
    """Rule for the same tensor under another name."""
    return one(ours, theirs, torch.Tensor.detach, torch.Tensor.detach)


def gain(ours: str, theirs: str) -> Rule:
    """Rule for a norm's gain that is stored as gain - 1 there."""
    return one(ours, theirs, lambda w_D: wide(w_D) + 1, lambda w_D: (wide(w_D) - 1).to(w_D.dtype))


def concatenated(ours: str, theirs: Sequence[str], sizes: Sequence[int]) -> Rule:
    """Rule for one of ours that is several of theirs concatenated, with `sizes` rows."""
    return Rule((ours,), tuple(theirs), lambda xs: [torch.cat(list(xs))], partial(split_rows, sizes=sizes))


def split(ours: Sequence[str], theirs: str, sizes: Sequence[int]) -> Rule:
    """Rule for several of ours that are one of theirs, split into `sizes` rows."""
    return Rule(tuple(ours), (theirs,), partial(split_rows, sizes=sizes), lambda xs: [torch.cat(list(xs))])


def split_rows(xs: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Slices of so many rows; empty ones, which the check of shapes reports, if the sizes do not add up."""
    (x,) = xs
    if x.shape[0] != sum(sizes):
        return [x.new_empty((0,))] * len(sizes)
    return list(torch.split(x, list(sizes)))


def conv(ours: str, theirs: str) -> list[Rule]:
    """Rules of a depthwise convolution, whose weights have an axis for the input channels there."""
    return [
        one(f"{ours}.weight_DW", f"{theirs}.weight", lambda w: w.flatten(1), lambda w_DW: w_DW[:, None]),
        same(f"{ours}.bias_D", f"{theirs}.bias"),
    ]


def repeated(ours: str, theirs: Sequence[str]) -> Rule:
    """Rule for one of ours that is stored several times."""

    def to_ours(xs: Sequence[Tensor]) -> list[Tensor]:
        if not all(x.is_meta or torch.equal(x, xs[0]) for x in xs[1:]):
            raise ValueError(
                f"{' and '.join(theirs)} differ, though the config says that they are one; correct the config."
            )
        return [xs[0]]

    return Rule((ours,), tuple(theirs), to_ours, lambda xs: [xs[0]] * len(theirs))


def absent(ours: str, shape: Sequence[int], value: float) -> Rule:
    """Rule for a tensor that the layout does not have, which must be `value` everywhere."""

    def to_theirs(xs: Sequence[Tensor]) -> list[Tensor]:
        if not xs[0].is_meta and not bool((xs[0] == value).all()):
            raise ValueError(f"{ours} is not {value:g} everywhere, and this layout has no place for it; use another.")
        return []

    return Rule((ours,), (), lambda _: [torch.full(tuple(shape), value)], to_theirs)


def wide(x: Tensor) -> Tensor:
    """x in float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
